"""Consults Layer Cards where `auto` chooses: the same for every host and for the command line.

`consult` asks whether any card of a shelf may decide for a model; where one may, a full probe is worth its time, and
`Consultation.decide` lets the cards whose ranks turn out alike choose. A card that the user named decides, or stops the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from layercard.anatomy.layers import LayerStack
from layercard.anatomy.targets import find_targets, linear_names
from layercard.cards.card import LayerCard
from layercard.cards.differences import template_digest
from layercard.cards.fingerprint import model_fingerprint, public_id
from layercard.cards.query import SCORE, CardQuery, same_model, why_incomparable, why_unwelcome
from layercard.cards.transfer import CardChoice, TransferRules, transfer
from layercard.errors import CardError, ModelError
from layercard.pipeline.before.shelf import NOT_OF_THIS_MODEL, Shelf, may_speak, none_of
from layercard.placement.choose import asked_count
from layercard.placement.placement import LayerPlacement
from layercard.settings import PlacementSettings

if TYPE_CHECKING:
    from torch import nn

    from layercard.hosts.protocol import Host
    from layercard.scores.base import LayerScores


@dataclass(frozen=True)
class Decision:
    """The placement that cards led to, or the one without them where they decide nothing."""

    placement: LayerPlacement
    choice: CardChoice | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Consultation:
    """The cards, what they are asked, and, where none may decide whatever its ranks, why not."""

    shelf: Shelf
    settings: PlacementSettings
    query: CardQuery
    why_not: str | None = None

    @property
    def worth_probing(self) -> bool:
        """Whether a card may decide, if its ranks turn out alike."""
        return self.why_not is None

    @property
    def comparable(self) -> bool:
        """Whether some card has ranks of this model's layers, be it allowed to decide or not."""
        return any(why_incomparable(card, self.query) is None for card in self.shelf.cards)

    def ask(self, scores: LayerScores | None) -> CardChoice:
        """Return what all cards say of layers that rank by `scores` (resnorm), None where nothing is comparable."""
        query = self.query if scores is None else replace(self.query, importance=scores.importance)
        return transfer(self.shelf.cards, query, transfer_rules(self.settings, query.num_layers))

    def turned_down(self, fallback: LayerPlacement) -> Decision:
        """Return `fallback` where no card may decide, saying why not."""
        return Decision(without_cards(fallback, self.why_not or ""), notes=self.shelf.notes)

    def decide(self, scores: LayerScores, fallback: LayerPlacement) -> Decision:
        """Return what the cards choose for layers that rank by `scores` (resnorm), or `fallback` with the reason added.

        Raises `CardError` where the user named a card and it does not decide.
        """
        if self.why_not is not None:
            return self.turned_down(fallback)
        choice = self.ask(scores)
        if choice.chosen is None and self.shelf.named:
            raise _unfit(choice.matches[0].card, choice.matches[0].why_not or choice.reason)
        placement = placement_from(choice, self.query.num_layers, self.settings)
        differing = choice.measured_otherwise
        return Decision(placement or without_cards(fallback, choice.reason), choice, (*self.shelf.notes, *differing))


def consult(
    shelf: Shelf,
    settings: PlacementSettings,
    model: Any,
    stack: LayerStack,
    *,
    target_modules: Sequence[str] | None = None,
    adaptable: tuple[int, ...] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Consultation:
    """Return what cards may decide for a loaded model; settled before anything is probed.

    `target_modules` (suffixes) stand in for adapters where there are none; `adaptable` are the layers that have adapters,
    None for every layer; `facts` are what `CardQuery.facts` holds.
    Raises `CardError` where the user named a card that may not decide.
    """
    bare = bare_query(model.config, len(stack))
    if not may_speak(shelf, model.config, len(stack)):
        return Consultation(shelf, settings, bare, none_of(shelf, model.config))
    try:
        query = replace(card_query(model, stack, target_modules=target_modules, facts=facts), adaptable=adaptable)
    except ModelError as error:
        if shelf.named:
            raise
        return Consultation(shelf, settings, bare, f"Layer Cards were not consulted: {error}")
    return Consultation(shelf, settings, query, _why_none_may(shelf, query, settings))


def bare_query(config: Any, num_layers: int) -> CardQuery:
    """Return the query of a model that is known by its configuration alone; it matches no card."""
    model = {"id": public_id(config.name_or_path), "revision": None, "num_layers": num_layers, "fingerprint": None}
    return CardQuery(model, frozenset(), frozenset())


def card_query(
    model: nn.Module,
    stack: LayerStack,
    *,
    target_modules: Sequence[str] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> CardQuery:
    """Return the query of a loaded model, without a ranking yet; raise `ModelError` where it cannot be identified."""
    targets = find_targets(model, stack, names=target_modules)
    ranks = [target.lora_a.shape[0] for target in targets if target.lora_a is not None]
    return CardQuery(
        model=model_fingerprint(model, stack=stack),
        targets=frozenset(target.name for target in targets),
        linear=linear_names(stack),
        facts=({"rank": max(ranks)} if ranks else {}) | dict(facts or {}),
    )


def run_facts(host: Host) -> dict[str, Any]:
    """Return what a trainer tells of its run that a card holds too: alpha, the length of a sequence, the chat template."""
    found: dict[str, Any] = {}
    tokenizer = vars(host.trainer).get("processing_class")
    if isinstance(tokenizer, PreTrainedTokenizerBase) and isinstance(tokenizer.chat_template, str):
        found["template"] = template_digest(tokenizer.chat_template)
    length = vars(host.trainer.args).get("max_length")
    if isinstance(length, int):
        found["max_length"] = length
    if isinstance(host.model, PeftModel):
        found["alpha"] = vars(next(iter(host.model.peft_config.values())))["lora_alpha"]
    return found


def transfer_rules(settings: PlacementSettings, num_layers: int) -> TransferRules:
    """Return what `settings` ask of cards; naming a card is the word that one not reproduced needs."""
    return TransferRules(
        min_spearman=settings.min_spearman,
        community=settings.community_cards or settings.cards is not None,
        prefer=settings.prefer,
        min_entry=settings.min_entry,
        count=asked_count(settings, num_layers),
    )


def placement_from(choice: CardChoice, num_layers: int, settings: PlacementSettings) -> LayerPlacement | None:
    """Return the placement that cards chose, or None where they chose none."""
    if choice.chosen is None:
        return None
    return LayerPlacement(
        layers=choice.chosen.layers,
        num_layers=num_layers,
        strategy="auto",
        score=SCORE if choice.chosen.by_score else None,
        reason=f"`auto` leaning to {settings.prefer}: {choice.reason}",
        evidence="measured card",
        cards=tuple(match.card.key for match in choice.used),
        expected=choice.expected(),
    )


def without_cards(fallback: LayerPlacement, why_not: str) -> LayerPlacement:
    """Return the placement that was chosen without cards, saying why no card chose it."""
    return replace(fallback, reason=f"{fallback.reason} ({why_not})")


def _why_none_may(shelf: Shelf, query: CardQuery, settings: PlacementSettings) -> str | None:
    """Return why no card may decide, whatever its ranks; None where one may."""
    rules = transfer_rules(settings, query.num_layers)
    kept_out = []
    for card in shelf.cards:
        apart = why_incomparable(card, query)
        reason = apart or why_unwelcome(card, query, community=rules.community)
        if reason is None:
            return None
        if shelf.named:
            raise _unfit(card, reason)
        if apart is None or same_model(card, query):
            kept_out.append(f"{card.key}: {reason}")
    return f"no Layer Card of this model may decide; {'; '.join(kept_out)}" if kept_out else NOT_OF_THIS_MODEL


def _unfit(card: LayerCard, reason: str) -> CardError:
    return CardError(
        f"The Layer Card `{card.key}` ({card.source}) cannot decide here: {reason}. Name another, or drop `cards` and take "
        "what matches, or else the choice by depth."
    )
