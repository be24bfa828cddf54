"""Runs `layercard measure`: chooses every set of layers, measures them, and says what came out and what follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click
import torch
from torch import nn

from layercard import plugins
from layercard.anatomy.adaptable import layers_holding, names_held
from layercard.cli.asked_layers import AskedLayers
from layercard.cli.choosing import Asked, choose
from layercard.cli.examine import Examined, examine, read_examples
from layercard.cli.given import options_given, words_of
from layercard.cli.loading import load_model, settled, skeleton
from layercard.cli.measured import document, show
from layercard.cli.next_steps import SHARED, Training, say_command, say_plan_next
from layercard.cli.options import PROBE_SETTINGS, DataSource, ModelSource
from layercard.cli.output import Output
from layercard.data import ProbeData
from layercard.errors import SettingsError
from layercard.pipeline.before.looking import locate_layers
from layercard.pipeline.before.other_parts import decided
from layercard.placement.choose import check_depth, needed_score, only_some
from layercard.placement.placement import LayerPlacement
from layercard.registry import Extensions
from layercard.settings import PlacementSettings
from layercard.study.measure import Measurement, measure_placements
from layercard.study.settings import StudySettings
from layercard.study.steps import BATCHES, Candidate


@dataclass(frozen=True)
class MeasureAsked:
    """What the command was given."""

    model: ModelSource
    data: DataSource
    layers: Sequence[AskedLayers]
    settings: StudySettings
    batch_size: int
    new_tokens: int
    """Of an answer; 0 where inference is not measured."""


@dataclass(frozen=True)
class Chosen:
    """A set of layers that will be measured."""

    asked: AskedLayers
    placement: LayerPlacement


def run_measure(given: MeasureAsked, output: Output, context: click.Context) -> dict[str, Any]:
    """Choose, measure, print; return what `--json` prints. What is wrong is told before weights are read where it can be."""
    extensions = plugins.extensions()
    for one in given.layers:
        _check_choice(one.settings, extensions)
    model = settled(given.model, given.data, output.say)
    assert model.purpose is not None  # the model is settled
    _check_device(given.model.device)
    if given.new_tokens and model.purpose.task != "causal":
        raise click.UsageError(f"`--inference` times causal language models, and this one is for {model.purpose.task}.")
    bare, first = skeleton(model.name, model.purpose), given.layers[0].settings
    stack = locate_layers(bare, first.layers_path, extensions)
    targets = None if given.settings.target_modules is None else list(given.settings.target_modules)
    adaptable = only_some(layers_holding(bare, stack, targets), len(stack))
    for one in given.layers:
        check_depth(one.settings, len(stack), adaptable)
    asked = [
        Asked(model, given.data, one.settings, targets, extensions, output, bare, stack, adaptable)
        for one in given.layers
    ]
    ahead = {i: choose(one)[0].placement for i, one in enumerate(asked) if _score(one) is None}
    reading = replace(first, probe_examples=given.batch_size * BATCHES, probe_batch_size=given.batch_size)
    examples = read_examples(replace(asked[0], settings=reading), bare)
    loaded = load_model(model, output.say)
    found = ahead | _scored(asked, loaded)
    adapted = list(names_held(bare, targets))
    placements = [decided(found[i], one.settings, bare, stack, adapted=adapted) for i, one in enumerate(asked)]
    chosen = list(_different(given.layers, placements, output))
    if not chosen:
        raise SettingsError("Every set of layers that was given holds all of them. Name fewer, such as `--sweep 2,4`.")
    measured = measure_placements(
        loaded,
        model.purpose.task if model.purpose.labels is None else model.purpose.labels.task,
        _whole(examples, given.batch_size, output),
        [Candidate(one.asked.name, one.placement) for one in chosen],
        given.settings,
        seed=first.random_seed,
        extensions=extensions,
        layers_path=first.layers_path,
        new_tokens=given.new_tokens,
    )
    placed = {one.asked.name: one.placement for one in chosen}
    show(output, measured, placed, given.settings)
    _say_next(output, context, measured, chosen, model, targets)
    return document(measured, placed, given.settings) | {"model": model.name}


def _check_choice(settings: PlacementSettings, extensions: Extensions) -> None:
    score = needed_score(settings, extensions.strategies)
    if score is not None:
        extensions.scorers[score]


def _check_device(name: str | None) -> None:
    """A trainer takes the first of the devices that it sees."""
    if name is not None and torch.device(name).index not in (None, 0):
        raise SettingsError(
            f"`device` is {name!r}, and training steps run on the first device that is seen. Give "
            f"`CUDA_VISIBLE_DEVICES={torch.device(name).index}` in the environment instead."
        )


def _score(asked: Asked) -> str | None:
    return needed_score(asked.settings, asked.extensions.strategies)


def _scored(asked: Sequence[Asked], loaded: nn.Module) -> dict[int, LayerPlacement]:
    """Choose where a score is needed, on one model; sets that read the same probe share it."""
    found: dict[int, LayerPlacement] = {}
    probes: dict[tuple[object, ...], Examined] = {}
    for i, one in enumerate(asked):
        score = _score(one)
        if score is None:
            continue
        probe = (score, *(getattr(one.settings, name) for name in PROBE_SETTINGS))
        if probe not in probes:
            probes[probe] = examine(one, [score], loaded=loaded)
        found[i] = one.choose(probes[probe])
    return found


def _different(layers: Sequence[AskedLayers], placements: Sequence[LayerPlacement], output: Output) -> Iterator[Chosen]:
    """Yield each set of layers once; all layers are measured anyway."""
    seen: dict[tuple[int, ...], str] = {}
    for asked, placement in zip(layers, placements, strict=True):
        if placement.is_all and placement.other_stacks != "shed":
            output.say(f"{asked.name} holds every layer, which is what the others are compared with.")
        elif placement.layers in seen:
            output.say(f"{asked.name} holds the layers of {seen[placement.layers]} and is not measured again.")
        else:
            seen[placement.layers] = asked.name
            yield Chosen(asked, placement)


def _whole(examples: ProbeData, batch_size: int, output: Output) -> list[dict[str, Any]]:
    """Return the batches as large as asked for; where there is none, the one there is, which is said."""
    whole = [batch for batch in examples.batches if len(batch["input_ids"]) == batch_size]
    if whole:
        return whole
    rows = len(examples.batches[0]["input_ids"])
    output.say(f"The dataset has {rows} usable rows, so a step has {rows}, not {batch_size}.")
    return [examples.batches[0]]


def _say_next(
    output: Output,
    context: click.Context,
    measured: Measurement,
    chosen: Sequence[Chosen],
    model: ModelSource,
    targets: list[str] | None,
) -> None:
    speedups = {run.name: run.speedup for run in measured.runs if run.speedup is not None}
    faster = [one for one in chosen if speedups[one.asked.name].told == "faster"]
    if not faster:
        if any(ratio.told == "too noisy to tell" for ratio in speedups.values()):
            words = [*words_of(context, but=("rounds", "as_json")), "--rounds", str(2 * len(measured.runs[0].seconds))]
            say_command(output, "measure longer, with nothing else running on this machine.", *words)
        else:
            output.say("Next: train every layer, or measure fewer layers, nearer to the top.")
        return
    if len(chosen) == 1:
        placement = chosen[0].placement
        language = model.purpose is not None and model.purpose.task == "causal"
        training = Training(chosen[0].asked.settings.layers_path, placement.other_stacks, targets, language)
        say_plan_next(output, placement, chosen[0].asked.settings.placement_path, training)
        return
    fastest = max(faster, key=lambda one: speedups[one.asked.name].value)
    words = ["layercard", "plan", *options_given(context, SHARED), *fastest.asked.words, "-o", "placement.json"]
    say_command(output, "write a choice down to train with it; the run tries its quality. The fastest one:", *words)
