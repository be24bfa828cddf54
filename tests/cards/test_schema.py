"""What a Layer Card must hold: valid ones pass and keep every field, each defect is named by its field."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from card_documents import measured, published
from layercard.cards.card import LayerCard
from layercard.cards.schema import check_card, problems, schema
from layercard.cards.writing import card_text
from layercard.errors import CardError

Change = Callable[[dict[str, Any]], Any]


def found(change: Change, document: dict[str, Any] | None = None) -> str:
    """Return the problems of a card after `change`, as one text."""
    changed = copy.deepcopy(document or measured())
    change(changed)
    return "; ".join(problems(changed))


def test_the_published_schema_is_itself_valid() -> None:
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("document", [measured(), published()], ids=["measured", "published"])
def test_valid_cards_pass(document: dict[str, Any]) -> None:
    assert problems(document) == []


def test_unknown_fields_are_kept() -> None:
    document = measured(later={"a": [1, {"b": None}]})
    document["model"]["colour"] = "red"
    document["layers"][0]["gradient_noise"] = 0.25
    assert check_card(document, "a").document == document


BAD: dict[str, tuple[Change, str]] = {
    "NaN": (lambda d: d["layers"][1]["scores"]["resnorm"].update(importance=float("nan")), "not a finite number"),
    "infinity in an unknown field": (lambda d: d.update(later=[float("inf")]), r"later\[0\]"),
    "an integer beyond doubles": (lambda d: d.update(later=10**400), "`later` is not a finite number"),
    "missing layer": (lambda d: d["layers"].pop(2), "lacks layer 2 of 6"),
    "layer twice": (lambda d: d["layers"][3].update(layer=2), "layer 2 more than once"),
    "layer out of range": (lambda d: d["layers"][5].update(layer=9), "layer 9, and the model has layers 0–5"),
    "layers out of order": (lambda d: d["layers"].reverse(), "not in order"),
    "depth of another model": (lambda d: d["model"].update(num_layers=5), "layers 0–4"),
    "a layer that is a fraction": (lambda d: d["outcomes"][0].update(layers=[0.0, 1]), r"outcomes\[0\].layers\[0\]"),
    "outcome out of range": (lambda d: d["outcomes"][0].update(layers=[0, 6]), "layer 6 is out of range"),
    "outcome's layers repeated": (lambda d: d["outcomes"][0].update(layers=[1, 1]), "ascending and named once"),
    "count": (lambda d: d["outcomes"][0].update(count=3), "`count` is 3 and `layers` names 2"),
    "outcome twice": (lambda d: d["outcomes"].append(d["outcomes"][0]), "`high` more than once"),
    "a score without a plugin": (lambda d: d["layers"][0]["scores"].update(cka={"importance": 1}), "`cka`"),
    "a plugin without a score": (lambda d: d["scorers"].update(cka={"plugin": "x"}), "`cka`"),
    "strata out of order": (
        lambda d: (d["outcomes"][0].update(layers=[4, 5]), d["outcomes"][0].update(resnorm_range=None)),
        "layers of `mid` have a higher resnorm than layers of `high`",
    ),
    "resnorm range": (lambda d: d["outcomes"][0].update(resnorm_range=[5.0, 7.0]), "`resnorm_range`"),
    "gain": (lambda d: d["outcomes"][0]["gain"].update(value=0.6), "the metrics give 0.5"),
    "gain without untuned": (lambda d: d["outcomes"].pop(), "needs the outcome `untuned`"),
    "mean over seeds": (
        lambda d: d["outcomes"][0]["metrics"]["heldout_loss"].update(seeds=[1.0, 1.1]),
        "not the mean of its seeds",
    ),
    "direction": (
        lambda d: d["outcomes"][0]["metrics"]["heldout_loss"].update(direction="higher"),
        "both higher and lower",
    ),
    "main metric": (lambda d: d.update(main_metric="bleu"), "`main_metric` is 'bleu'"),
    "main metric lacking": (lambda d: d["outcomes"][1].update(metrics={}), "the outcome `mid` does not hold"),
    "licence": (lambda d: d.update(license="MIT"), "`license`"),
    "status": (lambda d: d.update(status="trusted"), "`status`"),
    "reproduced without saying how": (lambda d: d.update(status="reproduced"), "within which tolerance"),
    "reproduced and not within it": (
        lambda d: d.update(
            status="reproduced", reproduction={"tolerance": 0.1, "largest_difference": 0.2, "date": "2026-01-03"}
        ),
        "above the tolerance of 0.1",
    ),
    "measured without a fingerprint": (lambda d: d["model"].update(fingerprint=None), "model.fingerprint"),
    "measured without layers": (lambda d: d.update(layers=[]), "`layers`"),
    "measured without a probe": (lambda d: d.pop("probe"), "'probe' is a required property"),
    "measured without a date": (lambda d: d["provenance"].pop("date"), "'date' is a required property"),
    "published with layers": (lambda d: d.update(provenance=published()["provenance"]), "`layers`"),
    "unknown provenance": (lambda d: d["provenance"].update(kind="heard"), "'heard' is not one of"),
    "an id that is a path": (lambda d: d["dataset"].update(id="../../etc"), "`dataset.id`"),
    "an id of dots": (lambda d: d["dataset"].update(id=".."), "`dataset.id`"),
    "an id of low lines": (lambda d: d["dataset"].update(id="_"), "leaves no file name"),
    "an id with a blank": (lambda d: d["model"].update(id="a b"), "model.id"),
    "version as text": (lambda d: d.update(schema_version="1"), "`schema_version`"),
    "version missing": (lambda d: d.pop("schema_version"), "'schema_version' is a required property"),
    "a negative ratio": (lambda d: d["outcomes"][0]["cost"].update(step_seconds_ratio=-1), "step_seconds_ratio"),
    "truth for a number": (lambda d: d["model"].update(num_layers=True), "model.num_layers"),
    "quick and reproduced": (
        lambda d: d.update(
            quick=True,
            status="reproduced",
            reproduction={"tolerance": 0.1, "largest_difference": 0.0, "date": "2026-01-03"},
        ),
        "smoke card",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_each_defect_is_named(name: str) -> None:
    change, message = BAD[name]
    assert re.search(message, found(change)), found(change)


def test_a_later_version_is_refused_by_its_number_whatever_else_it_holds() -> None:
    assert problems({"schema_version": 7, "new": {}}) == [
        "`schema_version` is 7, and this layercard reads up to 1; install a later layercard"
    ]


@pytest.mark.parametrize("value", [[], "card", None, 3])
def test_only_an_object_is_a_card(value: Any) -> None:
    assert "a Layer Card is a JSON object" in problems(value)[0]


def test_one_error_names_the_source_and_the_first_problems() -> None:
    document = measured(license=None, status=None, main_metric=None, scorers=None, layers=None, outcomes=None)
    with pytest.raises(CardError, match=r"^mine\.json: `.*and 1 more\.$") as caught:
        check_card(document, "mine.json")
    assert "\n" not in str(caught.value)


def test_messages_stay_short() -> None:
    assert all(len(line) < 300 for line in problems(measured(scorers="x" * 100_000)))


def test_gains_in_another_metric_are_left_alone() -> None:
    document = measured()
    document["outcomes"][0]["gain"] = {"metric": "accuracy", "value": 3.0}
    assert problems(document) == []


def test_validation_changes_nothing() -> None:
    document = measured()
    before = json.dumps(document)
    problems(document)
    assert json.dumps(document) == before


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=8), inside, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a document."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield (*path, key)
        yield from places(item, (*path, key))


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([measured(), published()]).flatmap(lambda d: st.tuples(st.just(d), st.sampled_from([*places(d)]))),
    anything,
)
def test_whatever_stands_anywhere_is_valid_or_named_and_never_a_crash(
    chosen: tuple[dict[str, Any], tuple[Any, ...]], value: Any
) -> None:
    document, path = copy.deepcopy(chosen[0]), chosen[1]
    parent: Any = document
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    found = problems(document)
    assert all(isinstance(line, str) and "\n" not in line for line in found)
    if not found:
        card = LayerCard(document, "a")
        assert card_text(document)
        for name in card.outcomes:
            card.gain(name), card.share_kept(name), card.relative_to_all_layers(name)
        assert card.key.count("/") == 1
        assert card.best is None or card.best in card.outcomes
