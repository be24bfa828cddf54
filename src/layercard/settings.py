"""`PlacementSettings`: the one dataclass that Python keywords, TRL flags, the command line and YAML keys share.

It offers the fields with their help, and `from_user`, which turns whatever a user may write for `lora_layers` into
them and validates once. It knows nothing of models: that a layer index exists is checked where the depth is known.

Only types that `transformers.HfArgumentParser` can turn into flags are used, and no name that TRL's own argument
classes have, so that the class can join a `TrlParser((...))`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from layercard.errors import SettingsError, nearest, one_of
from layercard.sizes import parse_prefix_cache

Prefer = Literal["quality", "balanced", "speed"]
CheckpointingAboveEntry = Literal["keep", "off", "auto"]
OnQualityLoss = Literal["warn", "stop", "all_layers", "widen"]

SIZE_FIELDS = ("num_layers", "fraction", "indices", "cumulative_threshold")


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class PlacementSettings:
    """What a user can say about layer placement. Frozen; `from_user` builds it and validates."""

    lora_layers: str = _option(
        "auto",
        "Which layers to adapt: `auto`, a strategy's name, layer indices separated by commas, or the path of a "
        "saved placement.json.",
    )
    strategy: str | None = _option(
        None,
        "How layers are chosen: by score `high`, `mid`, `low`, `cumulative`; by depth `first`, `middle`, `last`, "
        "`uniform`; `random`; or a plugin's.",
    )
    num_layers: int | None = _option(None, "How many layers to adapt.")
    fraction: float | None = _option(None, "Which share of all layers to adapt, in (0, 1].")
    indices: list[int] | None = _option(None, "Exactly these layers, numbered from 0 at the input.")
    cumulative_threshold: float | None = _option(
        None, "For `cumulative`: the fewest layers that hold this share of the summed importance, in (0, 1]."
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
    random_seed: int = _option(0, "Seed of the `random` strategy and of the choice of probe examples.")
    probe_examples: int = _option(32, "How many documents the probe reads; 8 at most where `auto` goes by depth.")
    probe_batch_size: int | None = _option(None, "Examples a probe batch (default: the trainer's batch size).")
    probe_rank: int = _option(8, "Adapter rank that the probe assumes where the model has no adapters yet.")
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
    gradient_entry: bool = _option(True, "End backpropagation at the lowest adapted layer.")
    checkpointing_above_entry: CheckpointingAboveEntry = _option(
        "keep",
        "Gradient checkpointing from the lowest adapted layer up: `keep` as the trainer has it, `off`, or `auto`: off "
        "where the measured peak stays under that of all-layer LoRA.",
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
        if given.get("cards") is False:
            given["cards"] = "off"
        known = [f.name for f in fields(cls)]
        for name in given:
            if name not in known:
                raise SettingsError(f"`{name}` is not a setting.{nearest(name, known)} Settings are {one_of(known)}.")
        settings = cls(**given)
        return settings.validated()

    def validated(self) -> PlacementSettings:
        """Return the settings with `lora_layers` spelled out in `strategy` or `indices`, or raise `SettingsError`."""
        _check_texts(self)
        parse_prefix_cache(self.prefix_cache)
        settings = _spelled_out(self)
        _check_numbers(settings)
        _check_choices(settings)
        _check_combination(settings)
        return settings

    @property
    def placement_path(self) -> Path | None:
        """The saved placement that `lora_layers` names, or None."""
        return Path(self.lora_layers) if self.lora_layers.endswith(".json") else None

    @property
    def consults_cards(self) -> bool:
        """Whether Layer Cards may decide: `auto`, and `cards` not `off`."""
        return self.is_auto and self.cards != "off"

    @property
    def is_auto(self) -> bool:
        """True where neither indices, a strategy nor a file were given."""
        return self.strategy is None and self.indices is None and self.placement_path is None


def _lora_layers_values(value: Any) -> dict[str, Any]:
    if isinstance(value, bool) or value is None:
        raise SettingsError(
            f"`lora_layers` is {value!r}. It takes `auto`, a strategy's name, a list of layer indices, the path of a "
            "placement.json, or a mapping of settings. Leave it out to train as without layercard."
        )
    if isinstance(value, int | float):
        raise SettingsError(
            f"`lora_layers` is the bare number {value!r}, which could mean one layer or so many layers. Write "
            f"`[{value}]` for that layer, or `{{num_layers: {value}}}` for that many."
        )
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
        return {"lora_layers": value}
    raise SettingsError(
        f"`lora_layers` is a {type(value).__name__}. It takes `auto`, a strategy's name, a list of layer indices, the "
        "path of a placement.json, or a mapping of settings."
    )


def _spelled_out(settings: PlacementSettings) -> PlacementSettings:
    text = settings.lora_layers.strip()
    if text in {"auto", "indices", "strategy"} or text.endswith(".json"):
        return settings
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        _check_indices([])
    if parts and all(_is_integer(part) for part in parts):
        if len(parts) == 1 and not settings.lora_layers.strip().startswith("["):
            _lora_layers_values(int(parts[0]))
        if settings.indices is not None and settings.indices != [int(part) for part in parts]:
            raise SettingsError(f"`lora_layers` is {text!r} and `indices` is {settings.indices}. Give one of them.")
        return replace(settings, lora_layers="indices", indices=[int(part) for part in parts])
    if settings.strategy not in (None, text):
        raise SettingsError(f"`lora_layers` is {text!r} and `strategy` is {settings.strategy!r}. Give one of them.")
    return replace(settings, lora_layers="strategy", strategy=text)


def _check_texts(s: PlacementSettings) -> None:
    for name in ("lora_layers", "strategy", "score", "cards", "layers_path", "prefix_cache"):
        value = getattr(s, name)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise SettingsError(
                f"`{name}` is {value!r}. It is a text that is not empty, in quotes where YAML needs them."
            )
    for spelled in ("indices", "strategy"):
        if s.lora_layers == spelled and getattr(s, spelled) is None:
            raise SettingsError(
                f"`lora_layers` is {spelled!r}, and `{spelled}` is not given. Give it, or write `auto`."
            )


def _is_integer(text: str) -> bool:
    return text.lstrip("-").isdigit()


def _check_numbers(s: PlacementSettings) -> None:
    _at_least(s, "num_layers", 1)
    _at_least(s, "min_entry", 0)
    _at_least(s, "probe_examples", 1)
    _at_least(s, "probe_batch_size", 1)
    _at_least(s, "probe_rank", 1)
    _at_least(s, "random_seed", 0)
    _between(s, "fraction", 0.0, 1.0, open_low=True)
    _between(s, "cumulative_threshold", 0.0, 1.0, open_low=True)
    _between(s, "measure_budget", 0.0, 0.5)
    _between(s, "min_spearman", 0.0, 1.0)
    _between(s, "guard_budget", 0.0, 0.5)
    _between(s, "quality_threshold", 0.0, 1.0)
    for name in ("measure", "guard", "gradient_entry", "community_cards"):
        if not isinstance(getattr(s, name), bool):
            raise SettingsError(f"`{name}` is {getattr(s, name)!r}. It is true or false.")
    if s.indices is not None:
        _check_indices(s.indices)


def _at_least(s: PlacementSettings, name: str, low: int) -> None:
    value = getattr(s, name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
        raise SettingsError(f"`{name}` is {value!r}. It is a whole number of at least {low}.")


def _between(s: PlacementSettings, name: str, low: float, high: float, *, open_low: bool = False) -> None:
    value = getattr(s, name)
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (low < value <= high if open_low else low <= value <= high):
        bracket = "(" if open_low else "["
        raise SettingsError(f"`{name}` is {value!r}. It is a number in {bracket}{low:g}, {high:g}].")


def _check_indices(indices: Any) -> None:
    if not isinstance(indices, list | tuple):
        raise SettingsError(f"`indices` is {indices!r}. It is a list of layers, such as `[3, 7]`.")
    wrong = [i for i in indices if isinstance(i, bool) or not isinstance(i, int) or i < 0]
    if wrong:
        raise SettingsError(
            f"`indices` holds {wrong[0]!r}. Layers are whole numbers from 0 at the input; negative ones are not counted "
            "from the end."
        )
    if not indices:
        raise SettingsError("`indices` is empty, so nothing would train. Name at least one layer.")
    twice = sorted({i for i in indices if indices.count(i) > 1})
    if twice:
        raise SettingsError(f"`indices` names layer {twice[0]} twice. Name each layer once.")


def _check_choices(s: PlacementSettings) -> None:
    for name, allowed in (
        ("prefer", ("quality", "balanced", "speed")),
        ("checkpointing_above_entry", ("keep", "off", "auto")),
        ("on_quality_loss", ("warn", "stop", "all_layers", "widen")),
    ):
        value = getattr(s, name)
        if value not in allowed:
            raise SettingsError(f"`{name}` is {value!r}. It is one of {one_of(allowed)}.{nearest(str(value), allowed)}")


def _check_combination(s: PlacementSettings) -> None:
    sizes = [name for name in SIZE_FIELDS if getattr(s, name) is not None]
    if len(sizes) > 1:
        raise SettingsError(
            f"{' and '.join(f'`{n}`' for n in sizes)} are both given. Exactly one of {one_of(SIZE_FIELDS)} says how many "
            "layers are adapted."
        )
    if parse_prefix_cache(s.prefix_cache) is not None and not s.gradient_entry:
        raise SettingsError(
            f"`prefix_cache` is {s.prefix_cache!r} and `gradient_entry` is false. Cached activations carry no gradient, so "
            "backpropagation has to end where they begin; set one of them otherwise."
        )
    if s.on_quality_loss != "warn" and not s.guard:
        raise SettingsError(
            f"`on_quality_loss` is {s.on_quality_loss!r} and `guard` is false, so no loss would be found. Drop one of them."
        )
    if s.indices is not None and s.strategy is not None:
        raise SettingsError(f"`indices` and `strategy` ({s.strategy!r}) are both given. Give one of them.")
    if s.indices is not None and min(s.indices) < s.min_entry:
        raise SettingsError(
            f"`indices` holds layer {min(s.indices)}, below `min_entry` ({s.min_entry}). Raise one or lower the other."
        )
    if s.cards not in (None, "off") and not s.is_auto:
        raise SettingsError(
            f"`cards` names {s.cards!r}, and layers are chosen without cards (`lora_layers` is {s.lora_layers!r}). Drop "
            "`cards`, or leave the choice to `auto`."
        )
    if s.placement_path is not None and (sizes or s.strategy is not None):
        raise SettingsError(
            f"`lora_layers` names the saved placement {s.lora_layers!r}, and {one_of(sizes or ['strategy'])} is given too. "
            "A saved placement is used as it is; drop the other."
        )
