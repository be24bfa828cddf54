"""`PlacementSettings`: the one dataclass that Python keywords, TRL flags, the command line and YAML keys share.

It offers the fields with their help, and `from_user`, which turns whatever a user may write for `lora_layers` into
them and validates once. It knows nothing of models: that a layer index exists is checked where the depth is known.

Only types that `transformers.HfArgumentParser` can turn into flags are used, and no name that TRL's own argument
classes have, so that the class can join a `TrlParser((...))`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from layercard.errors import SettingsError, nearest, one_of
from layercard.settings.checks import (
    ALL,
    BUDGET,
    COST_FIELDS,
    CheckpointingAboveEntry,
    OnQualityLoss,
    OtherStacks,
    Prefer,
    check_indices,
    check_texts,
    check_values,
)


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class PlacementSettings:
    """What a user can say about layer placement. Frozen; `from_user` builds it and validates."""

    lora_layers: str = _option(
        "auto",
        "Which layers to adapt: `auto`, a strategy's name, layer indices separated by commas, the path of a saved "
        "placement.json, or a mapping of settings in quotes, such as `'{strategy: high, fraction: 0.5}'`.",
    )
    strategy: str | None = _option(
        None,
        "How layers are chosen: by score `high`, `mid`, `low`, `cumulative`, `budget`, `set_gain`; by depth `first`, "
        "`middle`, `last`, `uniform`, `all`; `random`; or a plugin's.",
    )
    num_layers: int | None = _option(None, "How many layers to adapt.")
    fraction: float | None = _option(None, "Which share of all layers to adapt, in (0, 1].")
    indices: list[int] | None = _option(None, "Exactly these layers, numbered from 0 at the input.")
    cumulative_threshold: float | None = _option(
        None, "For `cumulative`: the fewest layers that hold this share of the summed importance, in (0, 1]."
    )
    budget: float | None = _option(
        None,
        "Largest share of all-layer LoRA's predicted step time that a step may take, in (0, 1]: the layers with the highest "
        "summed score that stay within it are adapted.",
    )
    min_gain: float | None = _option(
        None,
        "Least share of all layers' summed score to hold, in (0, 1]: the layers that hold it at the lowest predicted step "
        "time are adapted.",
    )
    max_memory: str | None = _option(
        None,
        "Memory of a device, such as `24GiB`: the layers with the highest summed score whose predicted peak leaves a tenth of "
        "it free are adapted. Alone, or beside `budget` or `min_gain`.",
    )
    score: str | None = _option(
        None,
        "The score that strategies by score rank layers by (default `resnorm`); see `layercard plugins`.",
    )
    prefer: Prefer = _option(
        "balanced",
        "What `auto` leans to: `quality`, `balanced` or `speed`; where no Layer Card matches, that is half, a third or a "
        "quarter of the layers.",
    )
    cards: str | None = _option(
        None,
        "The one Layer Card that `auto` may use, by its key `model/dataset` or its path; `off` for none (default: every "
        "card of the library that matches).",
    )
    community_cards: bool = _option(False, "Let `auto` use Layer Cards that were measured once and not yet reproduced.")
    min_spearman: float = _option(
        0.9, "How alike a Layer Card must rank the layers for `auto` to use it: Spearman's ρ, in [0, 1]."
    )
    min_entry: int = _option(0, "Adapt no layer below this one; backpropagation ends at the lowest adapted layer.")
    layers_path: str | None = _option(
        None, "The end of the dotted path of the stack of layers, for models that have several stacks."
    )
    other_stacks: OtherStacks | None = _option(
        None,
        "What becomes of adapters on the model's other stacks (a vision tower, an encoder): `shed` takes them out, `keep` "
        "trains them (default: `shed` where `layers_path` names the stack to place, else `keep`).",
    )
    random_seed: int = _option(0, "Seed of the `random` strategy and of the choice of probe examples.")
    probe_examples: int = _option(32, "How many documents the probe reads; 8 at most where `auto` goes by depth.")
    probe_batch_size: int | None = _option(None, "Examples a probe batch (default: the trainer's batch size).")
    probe_rank: int = _option(8, "Adapter rank that the probe assumes where the model has no adapters yet.")
    probe_budget: float = _option(
        0.02,
        "Largest share of the planned examples that the probe may read, in [0, 0.5]; where it is too small for a ranking, "
        "`auto` goes by depth.",
    )
    measure: bool = _option(True, "Time all-layer and placed steps at the start of training.")
    measure_budget: float = _option(0.02, "Largest share of the planned steps that timing may take, in [0, 0.5].")
    guard: bool = _option(
        True, "Try the placed layers against all layers for a few steps before training, by held-out loss."
    )
    on_quality_loss: OnQualityLoss = _option(
        "warn",
        "What to do where the trial keeps less than `quality_threshold`: `warn`, `stop` before training, adapt "
        "`all_layers`, or `widen` the placement and try again.",
    )
    quality_threshold: float = _option(
        0.9, "Smallest share of all-layer LoRA's gain in held-out loss that the trial may keep, in [0, 1]."
    )
    guard_budget: float = _option(
        0.03, "Largest share of the planned steps that the trial may take, timing included, in [0, 0.5]."
    )
    control: str | None = _option(
        None,
        "Control rows, whose loss says what the model forgets: `builtin` for those that are shipped, or the path of JSON lines "
        "with a `text` each; `off` for none (default: none).",
    )
    gradient_entry: bool = _option(True, "End backpropagation at the lowest adapted layer.")
    checkpointing_above_entry: CheckpointingAboveEntry = _option(
        "keep",
        "Gradient checkpointing from the lowest adapted layer up: `keep` as the trainer has it, `off`, or `auto`: off "
        "where the measured peak stays under that of all-layer LoRA.",
    )
    schedule: str | None = _option(
        None,
        "Let lower layers stop learning on the way: `rising`, or rises such as `0.25:0.33, 0.5:0.67` (after that share of the "
        "steps, that share of the adapted layers keeps what it learned). With `auto` every layer learns at first.",
    )
    prefix_cache: str = _option(
        "off",
        "Reuse the activations of the frozen prefix from the second epoch on: `off`, `on`, or a limit such as `8GiB`.",
    )

    @classmethod
    def from_user(cls, lora_layers: Any = "auto", **values: Any) -> PlacementSettings:
        """Build settings from what a user wrote for `lora_layers` and for single settings.

        Parameters: `lora_layers` is `auto`, a strategy's name, a sequence of indices, the path of a placement.json,
        or a mapping of settings; `values` are single settings by name and win over the mapping.
        Raises `SettingsError` naming the field, the bad value, what is allowed and the nearest name.
        """
        given = {n: v for n, v in (*_lora_layers_values(lora_layers).items(), *values.items()) if v is not None}
        if isinstance(given.get("prefix_cache"), bool):  # YAML reads a bare `on` or `off` as true or false
            given["prefix_cache"] = "on" if given["prefix_cache"] else "off"
        for name in ("cards", "control", "schedule", "checkpointing_above_entry"):
            if given.get(name) is False:
                given[name] = "off"
        rises = given.get("schedule")
        if isinstance(rises, list | tuple) and all(isinstance(rise, str) for rise in rises):
            given["schedule"] = ", ".join(rises)
        for name in RATIOS:  # YAML 1.1 reads a bare 1e-2 as text
            if isinstance(given.get(name), str) and EXPONENT.fullmatch(given[name]):
                given[name] = float(given[name])
        if given.get("schedule") == "off":
            del given["schedule"]
        known = [f.name for f in fields(cls)]
        for name in given:
            if name not in known:  # names of YAML may be numbers, or null
                raise SettingsError(
                    f"`{name}` is not a setting.{nearest(str(name), known)} Settings are {one_of(known)}."
                )
        settings = cls(**given)
        return settings.validated()

    def validated(self) -> PlacementSettings:
        """Return the settings with `lora_layers` spelled out in `strategy` or `indices`, or raise `SettingsError`."""
        check_texts(self)
        settings = _spelled_out(self)
        if settings.cost_setting is not None and settings.is_auto:
            settings = replace(settings, lora_layers="strategy", strategy=BUDGET)
        if settings.schedule is not None and settings.is_auto:
            settings = replace(settings, lora_layers="strategy", strategy=ALL)
        check_values(settings)
        return settings

    @property
    def placement_path(self) -> Path | None:
        """The saved placement that `lora_layers` names, or None."""
        return Path(self.lora_layers) if self.lora_layers.endswith(".json") else None

    @property
    def cost_setting(self) -> str | None:
        """The name of the setting by which layers are chosen by predicted costs, the first of `COST_FIELDS`; None without."""
        return next((name for name in COST_FIELDS if getattr(self, name) is not None), None)

    @property
    def consults_cards(self) -> bool:
        """Whether Layer Cards may decide: `auto`, and `cards` not `off`."""
        return self.is_auto and self.cards != "off"

    @property
    def is_auto(self) -> bool:
        """True where neither indices, a strategy nor a file were given."""
        return self.strategy is None and self.indices is None and self.placement_path is None


RATIOS = (
    "fraction", "cumulative_threshold", "budget", "min_gain", "min_spearman", "probe_budget", "measure_budget",
    "guard_budget", "quality_threshold",
)  # fmt: skip
EXPONENT = re.compile(r"[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]{1,2}")
NOTHING = frozenset({"null", "none", "off", "false", "no", "true", "on", "yes"})


def _lora_layers_values(value: Any) -> dict[str, Any]:
    if isinstance(value, bool) or value is None:
        raise SettingsError(
            f"`lora_layers` is {value!r}. It takes `auto`, a strategy's name, a list of layer indices, the path of a "
            "placement.json, or a mapping of settings. Leave it out to train as without layercard."
        )
    if isinstance(value, int | float):
        raise SettingsError(_bare_number(value))
    if isinstance(value, PlacementSettings):
        held = {f.name: getattr(value, f.name) for f in fields(value)}
        return held | _lora_layers_values(held["lora_layers"])  # a YAML parser may have put a list there
    if isinstance(value, Mapping):
        return {"lora_layers": "auto", **value}
    if isinstance(value, Path):
        return {"lora_layers": str(value)}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return {"lora_layers": "indices", "indices": list(value)}
    if isinstance(value, str):
        return _written_mapping(value) if value.lstrip().startswith("{") else {"lora_layers": value}
    raise SettingsError(
        f"`lora_layers` is a {type(value).__name__}. It takes `auto`, a strategy's name, a list of layer indices, the "
        "path of a placement.json, or a mapping of settings."
    )


def _bare_number(value: float) -> str:
    found = f"`lora_layers` is the bare number {value!r}"
    if isinstance(value, int) and value > 0:
        return (
            f"{found}, which could mean one layer or so many layers. Write `[{value}]` for that layer, or "
            f"`{{num_layers: {value}}}` for that many."
        )
    if value == 0:
        return f"{found}. Write `[0]` for the lowest layer alone."
    if isinstance(value, float) and 0 < value <= 1:
        return f"{found}. Write `{{fraction: {value}}}` for that share of the layers."
    return (
        f"{found}, and layers are whole numbers from 0 at the input. Write `[3, 7]` for those layers, `{{num_layers: 8}}` for so "
        "many, or `{fraction: 0.5}` for a share."
    )


def _written_mapping(text: str) -> dict[str, Any]:
    """Read the mapping that a shell's flag holds, as YAML would."""
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found) or None in found.values():
        raise SettingsError(
            f"`lora_layers` is {text!r}, which begins like a mapping and is none. Write it in quotes, with a space behind "
            "each colon: `'{strategy: high, fraction: 0.5}'`. A value that holds commas stands in brackets: "
            "`'{schedule: [0.25:0.33, 0.5:0.67]}'`."
        )
    names = [key.value for key, _ in yaml.compose(text, Loader=yaml.SafeLoader).value]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SettingsError(f"`lora_layers` is {text!r}, which holds `{twice[0]}` twice. Give it once.")
    return {"lora_layers": "auto", **found}


def _spelled_out(settings: PlacementSettings) -> PlacementSettings:
    text = settings.lora_layers.strip()
    if text in {"auto", "indices", "strategy"} or text.endswith(".json"):
        return settings
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        check_indices([])
    if parts and all(_is_integer(part) for part in parts):
        if len(parts) == 1 and not settings.lora_layers.strip().startswith("["):
            _lora_layers_values(int(parts[0]))
        if settings.indices is not None and settings.indices != [int(part) for part in parts]:
            raise SettingsError(f"`lora_layers` is {text!r} and `indices` is {settings.indices}. Give one of them.")
        return replace(settings, lora_layers="indices", indices=[int(part) for part in parts])
    if (advice := _no_name(text)) is not None:
        raise SettingsError(f"`lora_layers` is {text!r}. {advice}")
    if settings.strategy not in (None, text):
        raise SettingsError(f"`lora_layers` is {text!r} and `strategy` is {settings.strategy!r}. Give one of them.")
    return replace(settings, lora_layers="strategy", strategy=text)


def _no_name(text: str) -> str | None:
    """Return what to write instead of a text that is no strategy's name, None where it may be one."""
    if EXPONENT.fullmatch(text) or re.fullmatch(r"[-+]?[0-9]*\.[0-9]+", text):
        return _bare_number(float(text)).partition(". ")[2] or "Write `{fraction: 0.5}` for a share of the layers."
    if (found := re.fullmatch(r"([0-9]{1,6})\s*(?:-|:|\.\.|–)\s*([0-9]{1,6})", text)) is not None:
        first, last = int(found[1]), int(found[2])
        if last - first in range(1, 200):
            layers = ", ".join(map(str, range(first, last + 1)))
            return f"A range is not read, since its end could be meant or not. Name the layers: `[{layers}]`."
    if re.fullmatch(r"[0-9]+(\s+[0-9]+)+", text):
        return f"Separate layers by commas: `[{', '.join(text.split())}]`."
    if text.lower() == "auto":
        return "Did you mean `auto`?"
    if text.lower() in NOTHING:
        return "Leave it out to train as without layercard, or give `all` for every layer."
    if re.match(r"\w+\s*[:=]\s*\S", text):
        return "A mapping of settings stands in braces, with a space behind each colon: `'{strategy: last, num_layers: 2}'`."
    return None


def _is_integer(text: str) -> bool:
    """Whether it is a whole number in ASCII of a length that Python reads: `isdigit` takes ² and `--3` for some too."""
    return re.fullmatch(r"-?[0-9]{1,18}", text) is not None
