"""What settings may hold: every refusal names the field, the value found, and what is allowed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from layercard.errors import SettingsError, nearest, one_of
from layercard.settings.schedule import parse_schedule
from layercard.sizes import parse_prefix_cache, parse_size

if TYPE_CHECKING:
    from layercard.settings.placement_settings import PlacementSettings

Prefer = Literal["quality", "balanced", "speed"]
CheckpointingAboveEntry = Literal["keep", "off", "auto"]
OnQualityLoss = Literal["warn", "stop", "all_layers", "widen"]
OtherStacks = Literal["shed", "keep"]

MOST_BUDGET = 0.5
"""The largest share of a run that `probe_budget`, `measure_budget` and `guard_budget` may be."""
COST_FIELDS = ("budget", "min_gain", "max_memory")
"""Settings that weigh predicted costs: step times and memory."""
SIZE_FIELDS = ("num_layers", "fraction", "indices", "cumulative_threshold", *COST_FIELDS)
TEXT_FIELDS = (
    "lora_layers", "strategy", "score", "cards", "layers_path", "prefix_cache", "control", "schedule", "max_memory",
)  # fmt: skip
ALL = "all"
"""The strategy that adapts every layer; what a schedule begins with where nobody chose layers."""
BUDGET = "budget"
"""The strategy that weighs predicted costs, and is chosen by giving `budget`, `min_gain` or `max_memory`."""


def check_texts(s: PlacementSettings) -> None:
    """Raise `SettingsError` where a text is none, or is empty, or announces a setting that is not given."""
    for name in TEXT_FIELDS:
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


def check_values(s: PlacementSettings) -> None:
    """Raise `SettingsError` where a value is out of its range, or two of them do not go together."""
    _check_numbers(s)
    _check_choices(s)
    _check_combination(s)


def _check_numbers(s: PlacementSettings) -> None:
    _at_least(s, "num_layers", 1)
    _at_least(s, "min_entry", 0)
    _at_least(s, "probe_examples", 1)
    _at_least(s, "probe_batch_size", 1)
    _at_least(s, "probe_rank", 1)
    _at_least(s, "random_seed", 0)
    _between(s, "fraction", 0.0, 1.0, open_low=True)
    _between(s, "cumulative_threshold", 0.0, 1.0, open_low=True)
    _between(s, "budget", 0.0, 1.0, open_low=True)
    _between(s, "min_gain", 0.0, 1.0, open_low=True)
    _between(s, "probe_budget", 0.0, MOST_BUDGET)
    _between(s, "measure_budget", 0.0, MOST_BUDGET)
    _between(s, "min_spearman", 0.0, 1.0)
    _between(s, "guard_budget", 0.0, MOST_BUDGET)
    _between(s, "quality_threshold", 0.0, 1.0)
    for name in ("measure", "guard", "gradient_entry", "community_cards"):
        if not isinstance(getattr(s, name), bool):
            raise SettingsError(f"`{name}` is {getattr(s, name)!r}. It is true or false.")
    if s.indices is not None:
        check_indices(s.indices)


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


def check_indices(indices: Any) -> None:
    """Raise `SettingsError` unless `indices` are layers, each once, and at least one."""
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
    for name, choices in (
        ("prefer", Prefer),
        ("checkpointing_above_entry", CheckpointingAboveEntry),
        ("on_quality_loss", OnQualityLoss),
        ("other_stacks", OtherStacks),
    ):
        value, allowed = getattr(s, name), get_args(choices)
        if value not in allowed and not (value is None and name == "other_stacks"):
            raise SettingsError(f"`{name}` is {value!r}. It is one of {one_of(allowed)}.{nearest(str(value), allowed)}")


def _check_combination(s: PlacementSettings) -> None:
    sizes = [name for name in SIZE_FIELDS if getattr(s, name) is not None]
    beside = {"max_memory"} if {"budget", "min_gain"} & {*sizes} else set()
    if len({*sizes} - beside) > 1:
        raise SettingsError(
            f"{' and '.join(f'`{n}`' for n in sizes)} are both given. Exactly one of {one_of(SIZE_FIELDS)} says how many "
            "layers are adapted; `max_memory` may stand beside `budget` or `min_gain`."
        )
    _check_budget(s)
    _check_schedule(s, sizes)
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


def _check_budget(s: PlacementSettings) -> None:
    """A budget, or a least gain, chooses by itself how many layers are adapted, and which."""
    name = s.cost_setting
    if s.strategy == BUDGET and name is None:
        raise SettingsError(
            "`strategy` is 'budget', and `budget` is not given. Say which share of all-layer LoRA's predicted step time a "
            "step may take, such as `budget: 0.6`, or which share of the summed score to hold, such as `min_gain: 0.8`, or the "
            "memory to stay within, such as `max_memory: 24GiB`."
        )
    if s.max_memory is not None and parse_size(s.max_memory) is None:
        raise SettingsError(
            f"`max_memory` is {s.max_memory!r}. It is the memory of a device with its unit, such as `24GiB` or `80GB`."
        )
    if name is not None and s.strategy not in (None, BUDGET):
        raise SettingsError(
            f"`{name}` is {getattr(s, name)}, and the strategy `{s.strategy}` does not read it: `{name}` says itself which "
            "layers are adapted, by `score`. Drop one of them."
        )


def _check_schedule(s: PlacementSettings, sizes: list[str]) -> None:
    if s.strategy == ALL and sizes:
        raise SettingsError(
            f"`{sizes[0]}` is given, and the strategy `{ALL}` adapts every layer. Drop it, or name a strategy that chooses."
        )
    if not parse_schedule(s.schedule):
        return
    if not s.gradient_entry:
        raise SettingsError(
            f"`schedule` is {s.schedule!r} and `gradient_entry` is false. Layers that learn no more save time by "
            "backpropagation that ends above them; set one of them otherwise."
        )
    if s.on_quality_loss != "warn":
        raise SettingsError(
            f"`schedule` is {s.schedule!r} and `on_quality_loss` is {s.on_quality_loss!r}. A schedule is tried, and what its "
            "trial says of the run's end was never measured, so nothing acts on it. Drop one of them."
        )
