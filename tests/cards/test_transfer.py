"""Stage II on hand-made cards: who may speak, what is combined, what is chosen, and that it is said."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layercard.cards.card import LayerCard
from layercard.cards.differences import template_digest
from layercard.cards.schema import check_card
from layercard.cards.strata import regimes
from layercard.cards.transfer import CardChoice, TransferRules, transfer
from transfer_cards import DEPTH, DEPTHWISE, MODEL, TARGETS, card, query, ranking, reference

ALL_OUTCOMES = {"uniform": (0.98, 0.85), "upper_uniform": (0.97, 0.6), "last": (0.88, 0.4)}
PREFER = ("quality", "balanced", "speed")


def chosen(cards: list[LayerCard], importance: np.ndarray | None = None, **rules: Any) -> CardChoice:
    return transfer(cards, query(importance), TransferRules(**rules))


def why_not(one: LayerCard, **values: Any) -> str:
    rules = {name: values.pop(name) for name in ("community", "min_spearman") if name in values}
    (match,) = transfer([one], query(**values), TransferRules(**rules)).matches
    assert match.why_not is not None
    assert match.weight == 0
    return match.why_not


def test_hand_made_cards_are_valid() -> None:
    check_card(reference(depthwise=ALL_OUTCOMES), "reference")


def test_a_card_matches_its_own_data() -> None:
    found = chosen([card()])
    (match,) = found.matches
    assert match.matches
    assert match.weight == 1
    assert match.spearman == pytest.approx(1)
    assert match.partial_spearman == pytest.approx(1)
    assert found.chosen is not None
    assert found.chosen.layers == regimes(ranking())[found.chosen.name]


@pytest.mark.parametrize(
    ("prefer", "expected"),
    [("quality", "high"), ("balanced", "upper_uniform"), ("speed", "low")],
)
def test_prefer_trades_the_share_kept_for_time(prefer: Any, expected: str) -> None:
    found = chosen([card(depthwise=ALL_OUTCOMES)], prefer=prefer)
    assert found.chosen is not None
    assert found.chosen.name == expected
    assert len(found.options) == 6


def test_regimes_are_strata_of_the_target_and_depth_stays_depth() -> None:
    target = ranking(1, noise=0.1)
    assert regimes(target) != regimes(ranking())
    found = chosen([card(depthwise=ALL_OUTCOMES)], target)
    assert found.used
    layers = {option.name: option.layers for option in found.options}
    assert layers == regimes(target) | DEPTHWISE


def test_gains_and_costs_are_means_weighted_by_rho() -> None:
    near, far = (
        card("near", kept={"high": (1.0, 0.8)}),
        card("far", resnorm=ranking(3, noise=0.1), kept={"high": (0.8, 0.6)}),
    )
    found = chosen([near, far], prefer="quality")
    weights = {match.card.key: match.weight for match in found.used}
    rhos = {match.card.key: match.spearman for match in found.used}
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["tiny/near"] / weights["tiny/far"] == pytest.approx(rhos["tiny/near"] / rhos["tiny/far"])
    assert rhos["tiny/far"] < 1
    (option,) = found.options
    assert option.share_kept == pytest.approx(weights["tiny/near"] + 0.8 * weights["tiny/far"])
    assert option.step_seconds_ratio == pytest.approx(0.8 * weights["tiny/near"] + 0.6 * weights["tiny/far"])
    assert option.lowest_share_kept == pytest.approx(0.8)
    assert option.gain == pytest.approx(option.share_kept)  # all-layer LoRA gained 1 on both


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(4)))
def test_the_order_of_cards_does_not_matter(order: list[int]) -> None:
    cards = [card(f"data{i}", resnorm=ranking(i, noise=0.1), depthwise=ALL_OUTCOMES) for i in range(4)]
    assert chosen([cards[i] for i in order]) == chosen(cards)


@settings(max_examples=20, deadline=None)
@given(
    shares=st.lists(st.tuples(st.floats(0.2, 1.3), st.one_of(st.none(), st.floats(0.2, 1.5))), min_size=3, max_size=3)
)
def test_quality_expects_no_less_than_balanced_nor_balanced_than_speed(
    shares: list[tuple[float, float | None]],
) -> None:
    one = card(kept=dict(zip(("high", "mid", "low"), shares, strict=True)))
    picks = [chosen([one], prefer=prefer).chosen for prefer in PREFER]
    kept = [pick.share_kept for pick in picks if pick is not None]
    assert kept == sorted(kept, reverse=True)
    balanced, speed = (pick for pick in picks[1:] if pick is not None)
    if balanced.name != "all_layers" and balanced.step_seconds_ratio is not None:
        assert (speed.step_seconds_ratio or math.inf) <= balanced.step_seconds_ratio


def test_only_what_every_matching_card_tried_is_compared() -> None:
    found = chosen([card("a", depthwise=ALL_OUTCOMES), card("b")])
    assert {option.name for option in found.options} == {"high", "mid", "low"}
    apart = chosen([card("a", kept={"high": (1, 1)}), card("b", kept={"low": (1, 1)})])
    assert apart.chosen is None
    assert "share no set of layers" in apart.reason


def test_where_nothing_kept_enough_for_speed_it_takes_most_and_says_so() -> None:
    found = chosen([card(kept={"high": (0.6, 0.9), "low": (0.5, 0.3)})], prefer="speed")
    assert found.chosen is not None
    assert found.chosen.name == "high"
    assert "nothing that they tried kept 90%, all-layer LoRA did" in found.reason


@pytest.mark.parametrize(
    ("prefer", "share", "expected"),
    [
        ("quality", 0.94, "all_layers"),
        ("quality", 0.96, "high"),
        ("balanced", 0.89, "all_layers"),
        ("balanced", 0.91, "high"),
        ("speed", 0.2, "high"),
    ],
)
def test_where_placement_is_known_to_lose_every_layer_is_adapted(prefer: Any, share: float, expected: str) -> None:
    one = card(kept={"high": (share, 0.9), "low": (0.1, 0.3)})
    found = chosen([one], prefer=prefer)
    assert found.chosen is not None
    assert found.chosen.name == expected
    if expected == "all_layers":
        assert found.chosen.layers == tuple(range(DEPTH))
        assert found.chosen.share_kept == found.chosen.step_seconds_ratio == 1
        assert found.chosen.gain == pytest.approx(1)
        assert "every layer, for nothing tried on the Layer Card that matches (tiny/numbers" in found.reason
        assert f"the most, {share:.0%}, was kept by `high` with 4 layers" in found.reason
        bounded = chosen([one], prefer=prefer, min_entry=0, count=4).chosen  # a number was asked for
        assert bounded is not None
        assert bounded.name == "high"


def test_what_was_asked_for_beside_is_honoured() -> None:
    one = card(depthwise=ALL_OUTCOMES)
    above = chosen([one], min_entry=9, prefer="quality")
    assert above.chosen is not None
    assert above.chosen.name == "last"
    counted = chosen([one], count=6)
    assert counted.chosen is not None
    assert counted.chosen.name == "uniform"
    nothing = chosen([one], count=5, min_entry=3)
    assert nothing.chosen is None
    assert "of 5 layers from layer 3 up" in nothing.reason


def test_the_reason_names_cards_correlations_and_what_was_seen() -> None:
    found = chosen([card("numbers"), card("words", resnorm=ranking(3, noise=0.1))])
    for part in ("tiny/numbers", "tiny/words", "ρ 1.00", "given depth", "heldout_loss", "x as fast"):
        assert part in found.reason
    expected = found.expected()
    assert expected is not None
    json.dumps(expected, allow_nan=False)
    assert {"outcome", "share_kept", "step_seconds_ratio", "peak_memory_ratio", "metric", "cards"} <= set(expected)
    assert {"card", "spearman", "partial_spearman", "weight"} <= set(expected["cards"][0])


def test_nothing_is_said_without_a_card() -> None:
    assert chosen([]).reason == "there are no Layer Cards"
    assert chosen([]).expected() is None
    other = chosen([card(model=MODEL | {"id": "org/other", "fingerprint": "f" * 64})])
    assert other.chosen is None
    assert other.reason == "no measured Layer Card is of this model"
    assert other.matches[0].spearman is None


def test_another_model_is_never_used_whatever_its_ranks() -> None:
    known = MODEL | {"fingerprint": "f" * 64}
    assert "another model (org/other)" in why_not(card(model=known | {"id": "org/other"}))
    assert "other weights" in why_not(card(model=known))
    assert "other weights" in why_not(card(model=known | {"revision": "abc"}), revision="abd")
    assert transfer([card(model=known | {"revision": "abc"})], query(revision="abc"), TransferRules()).used
    deeper = card(model=known | {"num_layers": 14}, resnorm=ranking(layers=14))
    assert "with 14 layers; this one has 12" in why_not(deeper)


def test_a_renamed_model_is_still_the_same() -> None:
    assert transfer([card()], query(id="a-local-folder"), TransferRules()).used


def test_a_layer_count_that_is_wrong_for_the_model_is_refused() -> None:
    shorter = card(model=MODEL | {"num_layers": 10}, resnorm=ranking(layers=10))
    assert "it holds 10 layers and the model has 12" in why_not(shorter)


def test_other_target_modules_are_named() -> None:
    wider = card(lora={"rank": 8, "alpha": 16, "targets": [*TARGETS, "mlp.down_proj"]})
    assert "mlp.down_proj only on the card" in why_not(wider)
    assert "self_attn.v_proj only on the card" in why_not(card(), targets=["self_attn.q_proj"])


@pytest.mark.parametrize("names", [["q_proj", "v_proj"], ["self_attn.q_proj", "v_proj"]])
def test_target_modules_may_be_named_by_their_ends(names: list[str]) -> None:
    assert transfer([card(lora={"rank": 8, "alpha": 16, "targets": names})], query(), TransferRules()).used


def test_all_linear_means_every_linear_module() -> None:
    one = card(lora={"rank": 8, "alpha": 16, "targets": ["all-linear"]})
    assert transfer([one], query(targets=sorted(query().linear)), TransferRules()).used
    assert "only on the card" in why_not(one)


def test_cards_that_are_not_reproduced_need_a_word() -> None:
    once = card(status="community")
    assert "not reproduced" in why_not(once)
    assert chosen([once], community=True).used
    assert "smoke card" in why_not(card(status="community", quick=True), community=True)


def test_published_cards_cannot_match() -> None:
    assert "published" in why_not(card(provenance={"kind": "published", "document": "paper", "tables": ["4"]}))


def test_a_card_without_resnorm_cannot_match() -> None:
    document = reference()
    for row in document["layers"]:
        row["scores"] = {"cka": row["scores"]["resnorm"]}
    assert "holds no `resnorm`" in why_not(LayerCard(document, ""))


def test_rho_below_the_threshold_is_said_and_can_be_allowed() -> None:
    unlike = ranking(2, noise=0.3)
    assert "below `min_spearman` (0.9)" in why_not(card(), importance=unlike)
    found = chosen([card()], unlike, min_spearman=0.5)
    assert found.used
    near = chosen([card()], unlike)
    assert "the nearest, tiny/numbers" in near.reason


def test_data_that_share_depth_alone_do_not_match_however_high_rho() -> None:
    falling = np.exp(-np.arange(float(DEPTH)))
    swapped = falling.copy()
    swapped[[2, 3]] = swapped[[3, 2]]
    other = falling.copy()
    other[[8, 9]] = other[[9, 8]]
    found = chosen([card(resnorm=swapped)], other)
    (match,) = found.matches
    assert match.spearman is not None
    assert match.spearman > 0.95
    assert match.why_not is not None
    assert "depth alone explains" in match.why_not
    assert "0" in match.correlation()
    undefined = chosen([card(resnorm=falling)], falling)
    assert undefined.matches[0].partial_spearman is None
    assert not undefined.used


def test_a_constant_ranking_is_no_ranking() -> None:
    assert "no ranking" in why_not(card(), importance=np.ones(DEPTH))


def test_differences_are_listed_and_keep_nothing_out() -> None:
    facts = {"rank": 64, "alpha": 16, "max_length": 2048, "columns": {"prompt": "q", "completion": "a"}}
    training = {"steps": 4, "max_length": 512}
    asked = query(revision="abc", quantization="bitsandbytes 4-bit nf4", fingerprint="f" * 64, facts=facts)
    one = card(training=training, model=MODEL | {"revision": "abc", "gguf": "Q8_0"})
    (match,) = transfer([one], asked, TransferRules()).used
    listed = " | ".join(match.differences)
    for part in ("LoRA rank 64 here, 8", "sequence length 2048 here, 512", "4-bit nf4 here, none", "columns", "Q8_0"):
        assert part in listed
    assert "alpha" not in listed
    assert "template" not in listed  # nobody knows it here
    assert transfer([card()], query(), TransferRules()).used[0].differences == ()


def test_of_columns_those_are_compared_that_both_name() -> None:
    for column, differs in (("question", False), ("answer", True)):
        (match,) = transfer([card()], query(facts={"columns": {"prompt": column}}), TransferRules()).used
        assert bool(match.differences) is differs


def test_chat_templates_are_told_apart_by_their_digest() -> None:
    document = reference()
    document["dataset"]["template"] = template_digest("{{ messages }}")
    for template, differs in (("{{ messages }}", False), ("{{ other }}", True)):
        asked = query(facts={"template": template_digest(template)})
        (match,) = transfer([LayerCard(document, "")], asked, TransferRules()).used
        assert bool(match.differences) is differs


def test_shares_of_different_metrics_are_named_together() -> None:
    document = reference("graded")
    for row in document["outcomes"]:
        row["metrics"] = {"accuracy": {"value": 1 - row["metrics"]["heldout_loss"]["value"], "direction": "higher"}}
    graded = LayerCard(document | {"main_metric": "accuracy"}, "")
    found = chosen([graded, card()])
    assert found.metric == "accuracy and heldout_loss"
    assert found.chosen is not None
    assert found.chosen.gain is None
