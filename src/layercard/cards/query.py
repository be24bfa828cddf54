"""What a library is asked: is there a Layer Card for this model, and does it speak for these data?

Offers `CardQuery` and why a card cannot be compared with it, or may not be used for it. A card speaks for one model: the
same fingerprint, or the same id and revision. It says nothing of another model, of other target modules, or, without
per-layer ranks, of other data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from layercard.cards.card import LayerCard
from layercard.probing.statistics import Array

SCORE = "resnorm"
"""The score whose ranks are compared, as in layer-card.txt, Algorithm 1."""
ALL_LINEAR = "all-linear"
ANOTHER_MODEL = "another model"
"""How the reason begins why a card of another model says nothing of this one."""


@dataclass(frozen=True)
class CardQuery:
    """A model and data that a placement is wanted for."""

    model: Mapping[str, Any]
    """What `model_fingerprint` returns."""
    targets: frozenset[str]
    """The target modules, by their paths inside a layer."""
    linear: frozenset[str]
    """Every linear module of the layers, by the same paths; what short names of target modules are looked up in."""
    importance: Array | None = None
    """(layers,) resnorm on the data; None before the probe."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of the run, by its name in a card: `rank`, `alpha`, `max_length`, `columns`, `template`."""
    adaptable: tuple[int, ...] | None = None
    """The layers that have adapters; None: every layer, as on all cards."""

    @property
    def num_layers(self) -> int:
        """The model's depth."""
        return int(self.model["num_layers"])


def why_incomparable(card: LayerCard, query: CardQuery) -> str | None:
    """Return why `card` has no ranks to compare with those of `query`, or None where it has."""
    if not card.is_measured:
        return "published: it holds no ranks of layers to compare"
    if not same_model(card, query):
        return _another_model(card, query)
    if card.num_layers != query.num_layers:
        return f"it holds {card.num_layers} layers and the model has {query.num_layers}"
    if query.adaptable is not None:
        return f"it was measured with adapters in every layer, and here {len(query.adaptable)} of {query.num_layers} have them"
    importance = card.importance(SCORE)
    if importance is None:
        return f"it holds no `{SCORE}`"
    if len(importance) != query.num_layers:
        return f"it scores {len(importance)} layers and the model has {query.num_layers}"
    return None


def why_unwelcome(card: LayerCard, query: CardQuery, *, community: bool) -> str | None:
    """Return why `card`, however alike its ranks, may not decide for `query`; None where it may.

    `community` lets cards in that were measured once and not reproduced.
    """
    if reason := _other_targets(resolved_targets(card, query), query.targets):
        return reason
    if card.document.get("quick"):
        return "a smoke card, whose numbers mean nothing"
    if card.status != "reproduced" and not community:
        return "measured once and not reproduced (`community_cards` lets it in)"
    return None


def same_model(card: LayerCard, query: CardQuery) -> bool:
    """Whether both are the same base model: by fingerprint, or by id and a revision that both know."""
    known = card.document["model"]
    if card.fingerprint is not None and card.fingerprint == query.model["fingerprint"]:
        return True
    revision = known.get("revision")
    return revision is not None and (known["id"], revision) == (query.model["id"], query.model["revision"])


def may_be_same_model(card: LayerCard, num_layers: int, sizes: Mapping[str, Any], model_id: str) -> bool:
    """Whether `same_model` may hold, from what a configuration tells without weights; the vocabulary may be padded."""
    known = card.document["model"]
    if not card.is_measured or card.num_layers != num_layers:
        return False
    alike = all(sizes.get(n) == v for n, v in (known.get("sizes") or {}).items() if n in sizes and n != "vocab_size")
    return alike or known["id"] == model_id


def resolved_targets(card: LayerCard, query: CardQuery) -> frozenset[str]:
    """Return the card's target modules by their paths inside this model's layers; names that fit nothing are kept."""
    return frozenset(path for name in card.targets for path in _paths(name, query.linear | query.targets))


def _other_targets(there: frozenset[str], here: frozenset[str]) -> str | None:
    apart = ((there - here, "only on the card"), (here - there, "only here"))
    listed = [f"{', '.join(sorted(names))} {where}" for names, where in apart if names]
    return f"other target modules ({'; '.join(listed)})" if listed else None


def _paths(name: str, known: frozenset[str]) -> Iterator[str]:
    found = [path for path in known if name in (path, ALL_LINEAR) or path.endswith(f".{name}")]
    yield from found or [name]


def _another_model(card: LayerCard, query: CardQuery) -> str:
    known = card.document["model"]
    if known["id"].rsplit("/", 1)[-1] != str(query.model["id"]).rsplit("/", 1)[-1]:
        return f"{ANOTHER_MODEL} ({known['id']})"
    if card.num_layers != query.num_layers:
        return f"a model of this name with {card.num_layers} layers; this one has {query.num_layers}"
    return "a model of this name with other weights, dtype or quantization (fingerprints differ, and no revision says otherwise)"
