from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layercard.cost.speedup import SpeedupReport
from layercard.cost.timing import paired_ratio
from layercard.report.verdict import verdict_of
from layercard.report.words import duration, field_words
from reports import EXPECTED, QUALITY, TOO_SHORT, full_report, short_report


def test_a_faster_run_says_speed_with_its_interval_and_what_it_saved():
    verdict = verdict_of(full_report())
    assert verdict.speed.kind == "faster" and verdict.speed.seconds_lost is None
    assert verdict.speed.headline == "1.94x as fast (1.90x to 2.01x)"
    assert "96% interval, 20 pairs" in verdict.speed.sentence and "5.9 min are saved" in verdict.speed.sentence
    assert verdict.quality.kind == "predicted" and verdict.quality.share == 0.97
    assert "92% to 99%" in verdict.quality.headline


@pytest.mark.parametrize(("interval", "kind"), [((0.97, 1.2), "too noisy to tell"), ((1.0, 1.2), "too noisy to tell")])
def test_an_interval_that_spans_one_is_too_noisy_to_tell(interval, kind):
    verdict = verdict_of(full_report(step_speedup=1.05, interval=interval))
    assert verdict.speed.kind == verdict.speed.headline == kind
    assert "Probe and timing took 37.2 s" in verdict.speed.sentence
    assert "saved" not in verdict.speed.sentence


def test_a_run_that_got_slower_says_by_how_many_seconds():
    by_costs = verdict_of(full_report(end_to_end_speedup=0.9, seconds_saved=-12.0, break_even_steps=900))
    assert by_costs.speed.kind == "slower" and by_costs.speed.seconds_lost == 12.0
    assert "12.0 s slower through layercard" in by_costs.speed.sentence and "after 900 steps" in by_costs.speed.sentence
    by_steps = full_report(step_speedup=0.9, interval=(0.85, 0.95), seconds_saved=-50.0, break_even_steps=None)
    assert verdict_of(by_steps).speed.seconds_lost == 50.0
    all_layers = verdict_of(full_report(layers=tuple(range(30)), step_speedup=None, interval=None))
    assert all_layers.speed.seconds_lost == pytest.approx(37.2) and "37.2 s slower" in all_layers.speed.sentence
    assert all_layers.quality.kind == "reference"


def test_a_run_that_stopped_early_speaks_of_the_steps_that_it_ran():
    stopped = verdict_of(full_report(steps_run=90)).speed.sentence
    assert "Over 90 steps of 400 planned, with probe and timing" in stopped
    under_way = verdict_of(full_report(steps_run=90, partial=True)).speed.sentence
    older = verdict_of(full_report(steps_run=None, micro_batches=None)).speed.sentence
    assert all("Over 400 planned steps" in said for said in (under_way, older))


def test_quality_comes_from_the_best_evidence_there_is():
    measured = verdict_of(full_report(quality=QUALITY | {"kind": "measured"})).quality
    predicted = verdict_of(full_report()).quality
    untried = {"kind": "unknown", "reason": TOO_SHORT}
    card = verdict_of(full_report(quality=untried)).quality
    nothing = verdict_of(full_report(quality=untried, placement={})).quality
    assert [q.kind for q in (measured, predicted, card, nothing)] == ["measured", "predicted", "Layer Card", "unproven"]
    assert card.share == EXPECTED["share_kept"]
    assert all(
        said in card.sentence for said in ("96%", "smollm2-135m-instruct/e2e", "unproven on these data", TOO_SHORT)
    )
    assert nothing.share is None and TOO_SHORT in nothing.sentence
    assert (
        "trial of 4 steps on 32 examples of the eval set" in predicted.sentence
        and "2.711, measured" in predicted.sentence
    )


def test_too_little_quality_is_said_beside_the_threshold():
    poor = verdict_of(full_report(quality=QUALITY | {"share_kept": 0.5, "interval": [0.3, 0.7]})).quality
    assert "under the threshold of 90%" in poor.sentence
    assert "threshold" not in verdict_of(full_report()).quality.sentence


def test_a_reason_for_many_fields_stands_once():
    report = short_report()
    assert len(report.unavailable) > 8
    verdict = verdict_of(report)
    assert [unknown.reason for unknown in verdict.unknown] == [TOO_SHORT]
    assert set(verdict.unknown[0].fields) == set(report.unavailable)
    assert " ".join(verdict.lines()).count(TOO_SHORT) == 1


@given(st.dictionaries(st.sampled_from(list(SpeedupReport.__dataclass_fields__)), st.sampled_from(["a.", "b.", "c."])))
def test_every_field_that_is_unknown_stands_under_its_own_reason_once(unavailable):
    unknown = verdict_of(SpeedupReport(layers=(1,), num_layers=2, unavailable=unavailable)).unknown
    assert {name: u.reason for u in unknown for name in u.fields} == unavailable
    assert len({u.reason for u in unknown}) == len(unknown)
    assert sum(len(u.fields) for u in unknown) == len(unavailable)


def test_an_unmeasured_run_says_what_was_predicted():
    text = verdict_of(short_report(predicted={"step_speedup": 1.5})).speed.sentence
    assert "Not measured" in text and "Predicted for a step: 1.50x as fast" in text


def test_fields_have_words_and_later_ones_their_own_name():
    assert field_words("baseline.peak_bytes") == "peak memory of all-layer LoRA"
    assert field_words("placed.step_seconds") == "step time of the placed layers"
    assert field_words("added_later") == "added_later"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (0.25, "250 ms"), (90, "90.0 s"), (600, "10.0 min"), (7200, "2.0 h"), (-600, "-10.0 min")],
)
def test_seconds_are_said_as_people_do(seconds, said):
    assert duration(seconds) == said


def _noisy(rng, pairs, ratio):
    """The log-ratios of pairs whose steps take lognormal times, one variant `ratio` times as long as the other."""
    return list(rng.normal(0, 0.08, pairs) - rng.normal(0, 0.08, pairs) + np.log(ratio))


@pytest.mark.parametrize("pairs", [3, 6, 12, 20])
def test_identical_variants_are_told_apart_no_more_often_than_the_interval_says(pairs):
    rng, repetitions = np.random.default_rng(pairs), 2000
    found = [paired_ratio(_noisy(rng, pairs, 1.0)) for _ in range(repetitions)]
    told_apart = sum(not _verdict(ratio).startswith("too noisy") for ratio in found) / repetitions
    stated = 1 - found[0].coverage
    assert told_apart <= stated + 3 * np.sqrt(stated * (1 - stated) / repetitions)


@pytest.mark.parametrize("ratio", [0.7, 1.5])
def test_a_slowdown_of_known_size_is_recovered_and_named(ratio):
    rng, repetitions = np.random.default_rng(5), 500
    found = [paired_ratio(_noisy(rng, 20, ratio)) for _ in range(repetitions)]
    assert np.mean([r.low <= ratio <= r.high for r in found]) >= found[0].coverage - 0.03
    assert {_verdict(r) for r in found} == {"faster" if ratio > 1 else "slower"}


def _verdict(ratio):
    measured = full_report(step_speedup=ratio.value, interval=(ratio.low, ratio.high), seconds_saved=ratio.value - 1)
    return verdict_of(measured).speed.kind
