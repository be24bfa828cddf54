"""`layercard cards show`: one Layer Card, whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from layercard.cli.cards.words import LEGEND, UNKNOWN, achieved, kept, number, ratio, summary
from layercard.cli.options import CONTEXT, output_options
from layercard.cli.output import Output

if TYPE_CHECKING:
    from layercard.cards.card import LayerCard


@click.command(context_settings=CONTEXT)
@click.argument("card")
@output_options
def show(card: str, as_json: bool) -> None:
    """Show CARD: its name in `layercard cards list`, or a JSON file."""
    from layercard.cards.library import Library

    output = Output(as_json=as_json)
    (found,) = Library.open().named(card)
    for line in _about(found):
        output.say(line)
    output.console.print(_outcomes(found))
    output.say(LEGEND)
    if (others := _other_metrics(found)) is not None:
        output.console.print(others)
    if found.document["layers"]:
        output.console.print(_layers(found))
    output.finish({"card": found.document, "summary": summary(found)})


def _about(card: LayerCard) -> Iterator[str]:
    document = card.document
    model, dataset, lora, source = (document[part] for part in ("model", "dataset", "lora", "provenance"))
    yield f"Layer Card {card.key} ({source['kind']}, {card.status}{', quick' if document.get('quick') else ''})"
    shown = (model.get("dtype"), model.get("quantization"), model.get("gguf") and f"from GGUF {model['gguf']}")
    yield f"model    {_joined(model['id'], model.get('revision'), f'{card.num_layers} layers', *shown)}"
    counted = [f"{dataset[part]:,} {part}" for part in ("examples", "tokens") if dataset.get(part)]
    yield f"dataset  {_joined(dataset['id'], dataset.get('revision'), dataset.get('split'), *counted)}"
    rank, alpha, targets = (lora[part] for part in ("rank", "alpha", "targets"))
    named = ", ".join(targets) if targets else "targets not named"
    yield f"LoRA     {_joined(rank and f'rank {rank}', alpha and f'alpha {alpha}', named)}"
    if source["kind"] == "published":
        yield f"source   {source['document']}, tables {', '.join(source['tables'])}"
    else:
        versions = ", ".join(f"{name} {version}" for name, version in sorted(source["versions"].items()))
        yield f"source   {_joined(source['date'], versions)}"
    if source.get("note"):
        yield f"note     {source['note']}"
    tau = (document.get("stability") or {}).get("kendall_tau_over_seeds")
    if tau is not None:
        yield f"stable   Kendall τ of the layers' order over seeds: {tau:.3f}"


def _joined(*parts: Any) -> str:
    return ", ".join(str(part) for part in parts if part)


def _outcomes(card: LayerCard) -> Table:
    table = Table(title="What each set of layers reached and cost", title_justify="left", box=None, pad_edge=False)
    for heading in ("layers adapted", "count", card.main_metric, "kept", "step", "memory"):
        table.add_column(heading, justify="left" if heading == "layers adapted" else "right")
    for name, outcome in card.outcomes.items():
        found = achieved(card, name)
        count = UNKNOWN if outcome.count is None else str(outcome.count)
        costs = [ratio(outcome.step_seconds_ratio), ratio(outcome.peak_memory_ratio)]
        table.add_row(*map(Text, [name, count, number(found["value"]), kept(found), *costs]))
    return table


def _other_metrics(card: LayerCard) -> Table | None:
    """A row a metric, for cards may hold many; None where there is but the main one."""
    found = card.outcomes
    arrows = {name: metric.direction for outcome in found.values() for name, metric in outcome.metrics.items()}
    arrows.pop(card.main_metric, None)
    if not arrows:
        return None
    shown = [name for name, outcome in found.items() if outcome.metrics]
    table = Table(title="Other metrics", title_justify="left", box=None, pad_edge=False)
    table.add_column("metric", no_wrap=True)
    for name in shown:
        table.add_column(name, justify="right", overflow="fold")
    for metric, better in arrows.items():
        values = [found[name].metrics[metric].value if metric in found[name].metrics else None for name in shown]
        table.add_row(*map(Text, [f"{metric} {'↑' if better == 'higher' else '↓'}", *map(number, values)]))
    return table


def _layers(card: LayerCard) -> Table:
    scores = list(card.document["scorers"])
    regimes = {layer: o.name for o in card.outcomes.values() if o.kind == "regime" for layer in o.layers or ()}
    table = Table(title="Importance by layer, 0 at the input", title_justify="left", box=None, pad_edge=False)
    for heading in ("layer", *scores, "regime"):
        table.add_column(heading, justify="left" if heading == "regime" else "right")
    for row in card.document["layers"]:
        numbers = [number(row["scores"][score]["importance"]) for score in scores]
        table.add_row(*map(Text, [str(row["layer"]), *numbers, regimes.get(row["layer"], "")]))
    return table
