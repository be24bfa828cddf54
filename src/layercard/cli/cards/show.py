"""`layercard cards show`: one Layer Card, whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from layercard import plugins
from layercard.cli.cards.tables import layers_table, others_table, outcomes_table, scores_of, shown_scores
from layercard.cli.cards.words import LEGEND, summary
from layercard.cli.help import Command, examples
from layercard.cli.next_steps import MATCH, say_next
from layercard.cli.options import CONTEXT, output_options
from layercard.cli.output import Output

if TYPE_CHECKING:
    from layercard.cards.card import LayerCard


@click.command(
    cls=Command, context_settings=CONTEXT, epilog=examples("layercard cards show smollm2-135m-instruct/gsm8k")
)
@click.argument("card")
@output_options
def show(card: str, as_json: bool) -> None:
    """Show CARD: its name in `layercard cards list`, or a JSON file."""
    from layercard.cards.library import Library

    output = Output(as_json=as_json)
    (found,) = Library.open(plugins.card_folders()).named(card)
    for line in _about(found):
        output.say(line)
    output.console.print(outcomes_table(found))
    output.say(LEGEND)
    if (others := others_table(found)) is not None:
        output.console.print(others)
    if found.document["layers"]:
        shown = shown_scores(found, output.console.width)
        output.console.print(layers_table(found, shown))
        if unshown := scores_of(found)[len(shown) :]:
            output.say(f"Not shown, but in the file and in --json: {', '.join(unshown)}")
    say_next(output, "ask whether it speaks for your run.", f"  {MATCH}")
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
    yield from _origin(source)
    yield from _trust(document)


def _origin(source: Mapping[str, Any]) -> Iterator[str]:
    if source["kind"] == "published":
        yield f"source   {source['document']}, tables {', '.join(source['tables'])}"
    else:
        versions = ", ".join(f"{name} {version}" for name, version in sorted(source["versions"].items()))
        yield f"source   {_joined(source['date'], versions)}"
    if source.get("command"):
        yield f"command  {source['command']}"
    if source.get("note"):
        yield f"note     {source['note']}"


def _trust(document: Mapping[str, Any]) -> Iterator[str]:
    training = document.get("training") or {}
    budget = [f"{training[part]} {part.replace('_', ' ')}" for part in ("steps", "batch_size") if training.get(part)]
    seeds = training.get("seeds") and f"seeds {', '.join(map(str, training['seeds']))}"
    if budget or seeds:
        yield f"budget   {_joined(*budget, seeds)}"
    if again := document.get("reproduction"):
        yield f"again    largest difference {again['largest_difference']:.3g} (tolerance {again['tolerance']:.3g})"
    tau = (document.get("stability") or {}).get("kendall_tau_over_seeds")
    if tau is not None:
        yield f"stable   Kendall τ of the layers' order over seeds: {tau:.3f}"


def _joined(*parts: Any) -> str:
    return ", ".join(str(part) for part in parts if part)
