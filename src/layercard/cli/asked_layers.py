"""The sets of layers that `layercard measure` is asked for, by `--layers` and `--sweep`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from layercard.errors import SettingsError
from layercard.placement.placement import LayerPlacement
from layercard.settings import PlacementSettings

SWEPT = "last"
"""The strategy of `--sweep` where none is given."""


NOT_MEASURED: dict[str, Any] = {
    "schedule": None,
    "gradient_entry": True,
    "prefix_cache": "off",
    "checkpointing_above_entry": "keep",
}
"""Settings that change what a step costs and that are measured in a training run alone, with their usual values."""


@dataclass(frozen=True)
class AskedLayers:
    """One set of layers, as it was asked for."""

    name: str
    settings: PlacementSettings
    words: tuple[str, ...]
    """What `layercard plan` is given to choose the same."""


def asked_layers(
    layers: Sequence[str], sweep: Sequence[int] | None, strategy: str | None, common: Mapping[str, Any]
) -> list[AskedLayers]:
    """Return the sets in the order they were given, each with its own name.

    `common` are settings that hold for all. Raises `UsageError` where none was given, and `SettingsError` where what was
    given is no choice of layers; placement.json files are read.
    """
    if not layers and not sweep:
        raise click.UsageError("Say what to measure: `--layers 20,21`, `--layers last`, or `--sweep 2,4,8`.")
    if strategy is not None and not sweep:
        raise click.UsageError(
            "`--strategy` is that of `--sweep`, which is not given. `--layers` takes strategies itself."
        )
    asked = [*(_of_text(text, common) for text in layers), *_swept(sweep or (), strategy or SWEPT, common)]
    names = [one.name for one in asked]
    return [
        AskedLayers(f"{one.name} #{names[:i].count(one.name) + 1}", one.settings, one.words)
        if names.count(one.name) > 1
        else one
        for i, one in enumerate(asked)
    ]


def _of_text(text: str, common: Mapping[str, Any]) -> AskedLayers:
    settings = PlacementSettings.from_user(text, **common)
    _check_common(settings, common)
    if settings.placement_path is not None:
        LayerPlacement.load(settings.placement_path)
    return AskedLayers(_name(text, settings), settings, ("--lora-layers", text))


def _swept(sweep: Sequence[int], strategy: str, common: Mapping[str, Any]) -> Iterator[AskedLayers]:
    for count in sweep:
        settings = PlacementSettings.from_user(strategy, num_layers=count, **common)
        if settings.strategy is None and not settings.is_auto:
            raise SettingsError(
                f"`--strategy` is {strategy!r}. It takes the name of a strategy, such as `last` or `high`."
            )
        words = ("--lora-layers", strategy, "--num-layers", str(count))
        yield AskedLayers(f"{strategy} {count}", settings, words)


def _check_common(settings: PlacementSettings, common: Mapping[str, Any]) -> None:
    if settings.layers_path != common["layers_path"]:
        raise SettingsError(
            f"`--layers` holds `layers_path: {settings.layers_path}`, which is one for all that is measured. Give "
            "`--layers-path`."
        )
    for name, usual in NOT_MEASURED.items():
        if getattr(settings, name) != usual:
            raise SettingsError(
                f"`--layers` holds `{name}: {getattr(settings, name)}`, which is not measured: every step is of the same layers, "
                "with backpropagation ended at the lowest. Leave it out here; a training run's report has what it costs."
            )
    by_cost = settings.cost_setting
    if by_cost is not None:
        option = f"--{by_cost.replace('_', '-')}"
        raise SettingsError(
            f"`--layers` asks for a `{by_cost}`, which weighs predicted costs. Choose with `layercard plan {option} … -o "
            "placement.json`, and measure that file."
        )


def _name(text: str, settings: PlacementSettings) -> str:
    if settings.placement_path is not None:
        return Path(text).name
    if settings.indices is not None:
        return "list"
    return settings.strategy or "auto"
