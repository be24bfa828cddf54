"""The evidence said before training, the layers that widening adds, and the keys of a verdict."""

from dataclasses import replace
from pathlib import Path

import pytest

from layercard.placement.placement import LayerPlacement
from layercard.quality.evidence import PUBLISHED_RANGE, evidence_line
from layercard.quality.verdict import KEYS, Verdict, completed
from layercard.quality.widening import wider
from layercard.report.quality import quality_lines, quality_loss

PLACEMENT = LayerPlacement((25, 26, 27, 28, 29), 30, "last", None, "given")
TABLE_4 = {  # accuracies: bottom, mid, top, uniform five layers; all layers
    "Llama-2-7B": [
        (7.9606, 8.7945, 7.8848, 8.6429, 20.1668),
        (85.0329, 88.5381, 87.6319, 88.3390, 92.2824),
        (10.6667, 7.0000, 5.0000, 8.6667, 39.3333),
        (22.9146, 23.3166, 22.6131, 24.2881, 25.8291),
    ],
    "Qwen3-8B": [
        (61.2585, 69.9773, 75.8150, 68.3851, 70.3563),
        (74.3179, 70.5935, 79.3766, 79.0679, 89.2950),
        (53.6667, 53.0000, 53.6667, 54.3333, 59.3333),
        (50.4188, 53.3668, 53.1993, 54.6734, 55.7454),
    ],
}


def test_the_published_range_is_that_of_the_table():
    ratios = [five / row[-1] - 1 for rows in TABLE_4.values() for row in rows for five in row[:-1]]
    assert (round(max(ratios), 2), round(min(ratios), 2)) == PUBLISHED_RANGE


def test_without_evidence_the_published_range_is_named():
    line = evidence_line(PLACEMENT)
    assert line.startswith("Quality (none): no evidence about quality; published range at 5 of 32–36 layers")
    assert line.endswith("+8% to −87%.")


@pytest.mark.parametrize("kind", ["measured card", "published", "predicted"])
def test_every_kind_of_evidence_is_named_with_its_cards(kind):
    line = evidence_line(replace(PLACEMENT, evidence=kind, cards=("smollm2/e2e",)))
    assert line.startswith(f"Quality ({kind}): ")
    assert "smollm2/e2e" in line


def test_all_layers_need_no_evidence():
    assert evidence_line(LayerPlacement((0, 1), 2, "indices", None, "given")) is None


def test_widening_goes_downward_then_between():
    assert wider((8, 9), 10) == (7, 8, 9)
    assert wider((1, 4, 7), 10) == (0, 1, 4, 7, 9)
    assert wider((6, 8, 9), 10, min_entry=6) == (6, 7, 8, 9)
    assert wider((0, 1, 2), 4) == (0, 1, 2, 3)


def test_widening_goes_by_rank_where_a_score_chose():
    assert wider((2, 5, 7, 8), 10, ranked=[5, 2, 8, 7, 0, 9, 1, 3, 4, 6]) == (0, 2, 5, 7, 8, 9)
    assert wider((2,), 4, ranked=[0, 2, 1, 3], min_entry=1) == (1, 2)


def _verdict(**losses):
    means = {"before": 4.0, "all_layers": 2.0, "placed": 2.4} | losses
    spread = [-0.1, 0.0, 0.1, 0.0] * 4
    return Verdict({k: [v + s for s in spread] for k, v in means.items()}, 8, "eval_dataset", 1e-4)


def test_a_verdict_tells_what_was_measured_and_what_it_predicts():
    told = _verdict(placed_2x=2.2).to_dict()
    assert told.keys() <= set(KEYS) == set(completed(told))
    assert told["kind"] == "predicted"
    assert told["share_in_trial"] == pytest.approx(0.8)
    assert told["share_kept"] > 0.9
    assert told["learning_rate_hint"] == {
        "better": 2.0, "learning_rate": 2e-4, "share_in_trial": pytest.approx(0.9)
    }  # fmt: skip
    assert told["heldout_loss"]["placed"] == pytest.approx(2.4)


def test_the_better_rate_is_the_one_with_the_lower_finite_loss():
    assert _verdict().better_rate is None
    assert _verdict(placed_2x=2.6).better_rate == 1.0
    assert _verdict(placed_2x=float("nan")).better_rate == 1.0
    assert _verdict(placed=float("inf"), placed_2x=2.6).better_rate == 2.0


def test_a_trial_without_gain_is_unknown():
    told = _verdict(all_layers=4.5).to_dict()
    assert (told["kind"], told["share_kept"]) == ("unknown", None)
    assert "did not lower" in told["reason"]


def test_the_verdicts_docstring_names_every_key():
    import layercard.quality.verdict as module

    assert Path(module.__file__).exists()
    assert all(key in module.__doc__ for key in KEYS)


def _of_schedule(placed):
    verdict = Verdict(
        {"before": [4.0] * 9, "all_layers": [3.0] * 9, "placed": placed}, 12, "eval_dataset", 1e-3, rises=(3, 6)
    )
    return verdict, completed(verdict.to_dict() | {"threshold": 0.9, "reaction": "none"})


def test_the_share_of_a_schedule_is_not_carried_to_the_end():
    verdict, quality = _of_schedule([3.5] * 9)
    assert (verdict.in_trial.value, verdict.share.value, verdict.share.diverged) == (0.5, None, False)
    assert not verdict.share.below(0.9)
    assert (quality["kind"], quality["share_in_trial"], quality["share_kept"]) == ("tried", 0.5, None)
    assert quality["rises"] == [3, 6]
    assert replace(verdict, rises=()).share.value > 0.5
    lines = quality_lines(quality, PLACEMENT)
    assert "50% (50% to 50%)" in lines[1]
    assert "not predicted" in lines[2]
    assert all(len(said) < 100 for line in lines for said in line.split(". "))


def test_a_schedule_without_a_gain_to_compare_with_is_unknown_and_one_that_diverges_is_lost():
    verdict, quality = _of_schedule([float("nan")] * 9)
    assert verdict.share.below(0.9)
    assert quality["kind"] == "unknown"
    assert quality_loss(quality, PLACEMENT).endswith("Lower the learning rate, or train without `schedule`.")
    none = Verdict(
        {"before": [4.0] * 9, "all_layers": [4.0] * 9, "placed": [3.0] * 9}, 12, "eval_dataset", 1e-3, rises=(3,)
    )
    assert "did not lower" in none.to_dict()["reason"]
    assert none.to_dict()["kind"] == "unknown"
