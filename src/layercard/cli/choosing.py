"""From what a command was given to a placement: probes where the choice needs it, asks Layer Cards where `auto` chooses.

Weights are loaded only for a probe, or where a card may be of the model by its configuration.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from layercard.cli.examine import Examined, Given, examine
from layercard.cli.loading import load_model
from layercard.cli.options import DataSource
from layercard.errors import ModelError, ProbeError, TooFewExamplesError, UntrainableError
from layercard.pipeline.before.consulting import Consultation, Decision, bare_query, consult
from layercard.pipeline.before.looking import locate_layers, without_a_look
from layercard.pipeline.before.shelf import Shelf, may_speak, none_of, open_shelf
from layercard.placement.choose import DEFAULT_SCORE, choose_placement, needed_score
from layercard.placement.placement import LayerPlacement
from layercard.placement.strategies import Predictions

if TYPE_CHECKING:
    from torch import nn

    from layercard.anatomy.layers import LayerStack

UNASKED = "Layer Cards may be of this model; give `--dataset` to consult them"


@dataclass(frozen=True)
class Asked(Given):
    """What a command was given, and the model without weights."""

    bare: Any
    stack: LayerStack
    adaptable: tuple[int, ...] | None = None
    """The layers of `stack` that will have adapters; None: every layer."""
    predictions: Predictions = field(default_factory=Predictions)
    """What predicts costs, where a setting limits them."""

    def require_data(self, score: str) -> None:
        """Raise `UsageError` where no data were given to compute `score` on."""
        if self.data.name is None:
            raise click.UsageError(
                f"The strategy `{self.settings.strategy}` reads the score `{score}`, which needs examples. Give "
                "`--dataset`."
            )

    def examine(self, score: str, loaded: nn.Module | None = None) -> Examined:
        """Probe; raise `UsageError` where no data were given."""
        self.require_data(score)
        return examine(self, [score], loaded=loaded)

    def choose(self, examined: Examined | None) -> LayerPlacement:
        """Return the placement without Layer Cards."""
        scores = examined.scores if examined else None
        strategies = self.extensions.strategies
        return choose_placement(
            self.settings,
            len(self.stack),
            strategies=strategies,
            scores=scores,
            adaptable=self.adaptable,
            **self.predictions,
        )


@dataclass(frozen=True)
class Answer:
    """What Layer Cards say to a command; `loaded` and `examined` where the model was loaded and probed for them."""

    consultation: Consultation
    loaded: nn.Module | None = None
    examined: Examined | None = None
    failure: str | None = None
    """Why the model could not be probed, where no score decides."""


def choose(asked: Asked) -> tuple[Decision, Examined | None]:
    """Return the placement, and what was probed for it."""
    score = needed_score(asked.settings, asked.extensions.strategies)
    if score is not None:
        examined = asked.examine(score)
        return Decision(asked.choose(examined)), examined
    fallback = asked.choose(None)
    if not asked.settings.consults_cards:
        return Decision(fallback), None
    answer = ask_cards(asked, thorough=False)
    if answer.failure is not None:
        return Decision(fallback, notes=(*answer.consultation.shelf.notes, answer.failure)), None
    if answer.examined is None:
        return answer.consultation.turned_down(fallback), None
    return answer.consultation.decide(answer.examined.scores[DEFAULT_SCORE], fallback), answer.examined


def ask_cards(asked: Asked, *, thorough: bool) -> Answer:
    """Return what cards may decide, the model probed where one may.

    With `thorough` it is probed wherever ranks can be compared, and must be. Raises `CardError` or `UsageError` where the
    user named a card that cannot be asked.
    """
    shelf = open_shelf(asked.settings, asked.extensions.card_folders)
    if not may_speak(shelf, asked.bare.config, len(asked.stack)):
        return Answer(_unasked(asked, shelf, none_of(shelf, asked.bare.config)))
    if asked.data.name is None:
        if shelf.named:
            raise click.UsageError("`--cards` names a Layer Card, which is compared on examples. Give `--dataset`.")
        return Answer(_unasked(asked, shelf, UNASKED))
    loaded = load_model(asked.model, asked.output.say)
    stack = locate_layers(loaded, asked.settings.layers_path, asked.extensions)
    consultation = consult(
        shelf, asked.settings, loaded, stack,
        target_modules=asked.targets, adaptable=asked.adaptable, facts=_facts(asked.data),
    )  # fmt: skip
    if not (consultation.comparable if thorough else consultation.worth_probing):
        return Answer(consultation, loaded)
    try:
        return Answer(consultation, loaded, asked.examine(DEFAULT_SCORE, loaded))
    except (ModelError, ProbeError, TooFewExamplesError) as error:
        if thorough or shelf.named or isinstance(error, UntrainableError):
            raise
        return Answer(consultation, loaded, failure=without_a_look(error))


def _unasked(asked: Asked, shelf: Shelf, why_not: str) -> Consultation:
    return Consultation(shelf, asked.settings, bare_query(asked.bare.config, len(asked.stack)), why_not)


def _facts(data: DataSource) -> dict[str, Any]:
    """What the options tell of the run that a card holds too."""
    known = {"max_length": data.max_length, "columns": data.columns or None}
    return {name: value for name, value in known.items() if value is not None}
