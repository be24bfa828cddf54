"""Asks every Layer Card about a model and data for `layercard cards match`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from layercard import plugins
from layercard.anatomy.adaptable import layers_holding
from layercard.anatomy.layers import describe
from layercard.cards.options import Option
from layercard.cards.query import ANOTHER_MODEL
from layercard.cards.transfer import CardChoice, CardMatch
from layercard.cli.cards.words import UNKNOWN, share, speed
from layercard.cli.choosing import Answer, Asked, ask_cards
from layercard.cli.loading import settled, skeleton
from layercard.cli.next_steps import say_sentences
from layercard.cli.options import DataSource, ModelSource
from layercard.cli.output import Output
from layercard.pipeline.before.consulting import placement_from, without_cards
from layercard.pipeline.before.looking import locate_layers
from layercard.placement.choose import DEFAULT_SCORE, check_depth, only_some
from layercard.placement.placement import LayerPlacement
from layercard.records import local_file
from layercard.settings import PlacementSettings

FEW = 3
"""As many models are named."""
DIGITS = 6
"""Cells that a number keeps in a narrow terminal."""


@dataclass(frozen=True)
class Matches:
    """What every card says of one model and data, and the placement that `auto` would make of it."""

    choice: CardChoice
    placement: LayerPlacement
    answer: Answer

    def document(self) -> dict[str, Any]:
        """Return what `layercard cards match --json` prints."""
        examined = self.answer.examined
        chosen = self.choice.chosen
        return {
            "matches": [match.to_dict() for match in self.choice.matches],
            "chosen": None if chosen is None else _row(chosen) | {"cards": list(self.placement.cards)},
            "placement": self.placement.to_dict(),
            "options": [_row(option) for option in self.choice.options],
            "reason": self.choice.reason,
            "notes": list(self.answer.consultation.shelf.notes),
            "probe": None if examined is None else examined.document()["probe"],
        }

    def show(self, output: Output) -> None:
        """Print it for people."""
        for note in self.answer.consultation.shelf.notes:
            output.say(note)
        measured = [match for match in self.choice.matches if match.card.is_measured]
        foreign = [match for match in measured if (match.why_not or "").startswith(ANOTHER_MODEL)]
        if near := [match for match in measured if match not in foreign]:
            output.console.print(_matches_table(near))
            for match in near:
                if match.why_not:
                    output.say(f"{match.card.key}: {match.why_not}.")
        if foreign:
            output.say(_foreign(foreign))
        if published := len(self.choice.matches) - len(measured):
            output.say(f"Published cards ({published}) hold no ranks of layers to compare, so they cannot match.")
        for sentence in self.choice.measured_otherwise:
            output.say(sentence)
        if self.choice.options:
            output.console.print(_options_table(self.choice))
        output.say(f"`auto` adapts {describe(self.placement.layers, self.placement.num_layers)}.")
        say_sentences(output, [self.placement.reason])


def find_matches(
    model: ModelSource, data: DataSource, settings: PlacementSettings, targets: list[str] | None, output: Output
) -> Matches:
    """Ask every card; probe where one is of this model."""
    if data.name is not None:
        local_file(data.name)  # a misspelt file is refused, whether a card makes it be read or not
    model = settled(model, data, output.say)
    extensions, bare = plugins.extensions(), skeleton(model.name, model.purpose)
    stack = locate_layers(bare, settings.layers_path, extensions)
    adaptable = only_some(layers_holding(bare, stack, targets), len(stack))
    check_depth(settings, len(stack), adaptable)
    asked = Asked(model, data, settings, targets, extensions, output, bare, stack, adaptable)
    answer = ask_cards(asked, thorough=True)
    choice = answer.consultation.ask(None if answer.examined is None else answer.examined.scores[DEFAULT_SCORE])
    placement = placement_from(choice, len(stack), settings) or without_cards(asked.choose(None), choice.reason)
    return Matches(choice, placement, answer)


def _foreign(matches: Sequence[CardMatch]) -> str:
    models = list(dict.fromkeys(match.card.document["model"]["id"] for match in matches))
    more = f" and {len(models) - FEW} more" if len(models) > FEW else ""
    many = "1 measured card is" if len(matches) == 1 else f"{len(matches)} measured cards are"
    return f"{many} of {ANOTHER_MODEL} ({', '.join(models[:FEW])}{more})."


def _row(option: Option) -> dict[str, Any]:
    values = asdict(option)
    return {"outcome": values.pop("name")} | values | {"layers": list(option.layers)}


def _matches_table(matches: Sequence[CardMatch]) -> Table:
    table = Table(title="Measured Layer Cards, the nearest first", title_justify="left", box=None, pad_edge=False)
    table.add_column("card", no_wrap=True)
    for heading in ("ρ", "given depth", "p", "weight"):
        table.add_column(heading, justify="right", min_width=DIGITS)
    for match in matches:
        numbers = [_number(match.spearman, 3), _number(match.partial_spearman, 3), _number(match.p_value, 4)]
        weight = f"{match.weight:.2f}" if match.matches else UNKNOWN
        table.add_row(*map(Text, [match.card.key, *numbers, weight]))
    return table


def _options_table(choice: CardChoice) -> Table:
    heading = f"What the cards that match lead one to expect, in {choice.metric}"
    table = Table(title=heading, title_justify="left", box=None, pad_edge=False)
    table.add_column("layers", no_wrap=True)
    for name in ("many", "kept", "at the least", "speed", "memory"):
        table.add_column(name, justify="right")
    for option in choice.options:
        shares = [f"{option.share_kept:.0%}", f"{option.lowest_share_kept:.0%}"]
        ratios = [speed(option.step_seconds_ratio), share(option.peak_memory_ratio)]
        style = "bold" if option == choice.chosen else ""
        table.add_row(*map(Text, [option.name, str(len(option.layers)), *shares, *ratios]), style=style)
    return table


def _number(value: float | None, digits: int) -> str:
    return UNKNOWN if value is None else f"{value:.{digits}f}"
