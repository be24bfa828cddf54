import json

import pytest

from layercard.cost.speedup import Saving, SpeedupReport, StepCost, seconds_text
from layercard.errors import LayercardError
from layercard.sizes import bytes_text

FULL = SpeedupReport(
    layers=(2, 3),
    num_layers=4,
    step_speedup=2.0,
    interval=(1.8, 2.3),
    interval_coverage=0.97,
    pairs=6,
    end_to_end_speedup=1.9,
    baseline=StepCost(0.2, 2**21, 1000, 0.01),
    placed=StepCost(0.1, 2**20, 500, 0.01),
    quality={"kind": "predicted", "share_kept": 0.93, "interval": [0.85, 1.01], "final_heldout_loss": 1.25},
    probe_seconds=1.0,
    overhead_seconds=2.0,
    break_even_steps=30,
    observed_step_seconds=0.12,
    planned_steps=100,
    steps_run=100,
    micro_batches=100,
    phases={"baseline": {"forward": 0.1, "backward": 0.1}, "placed": {"forward": 0.1, "backward": 0.0}},
    seconds_saved=7.0,
    backward_layers=(2, 3),
    gradient_entry={"layer": 2, "moved": True},
    saving=Saving(0.1, 0.4, 0.0),
    memory_method="counted",
    partial=False,
)
KEYS = {
    "schema_version", "step_speedup", "interval", "end_to_end_speedup", "baseline", "placed", "quality", "probe_seconds",
    "overhead_seconds", "break_even_steps", "backward_layers", "saving", "unavailable", "partial",
}  # fmt: skip


def test_the_agreed_keys_stand_in_the_document_and_survive_json():
    document = json.loads(json.dumps(FULL.to_dict()))
    assert set(document) >= KEYS
    assert (
        {"step_seconds", "peak_bytes", "trainable_parameters"} <= set(document["baseline"]) == set(document["placed"])
    )
    assert set(document["saving"]) == {"adapters", "backward", "prefix_cache"}
    assert SpeedupReport.from_dict(document) == FULL
    assert SpeedupReport.from_dict(document | {"added_later": 1}) == FULL


def test_other_schema_versions_are_refused():
    with pytest.raises(LayercardError, match="schema_version 9"):
        SpeedupReport.from_dict(FULL.to_dict() | {"schema_version": 9})


def test_nulls_without_reason_are_found():
    assert FULL.unexplained() == []
    bare = SpeedupReport(layers=(1,), num_layers=2)
    assert {"step_speedup", "baseline.step_seconds", "saving.backward", "backward_layers"} <= set(bare.unexplained())


def test_the_plain_table_says_unknowns():
    assert (
        str(FULL)
        .splitlines()[-1]
        .endswith("2.00x    predicted: 93% (85% to 101%) of the gain, held-out loss 1.25 at the end")
    )
    last = str(SpeedupReport(layers=(1,), num_layers=2)).splitlines()[-1]
    assert last.endswith("not measured  unknown")


def test_units():
    assert [seconds_text(x) for x in (0.0123, 2, None)] == ["12.3 ms", "2.00 s", "unknown"]
    assert [bytes_text(x) for x in (3 * 2**29, 2**20, None)] == ["1.50 GiB", "1.0 MiB", "unknown"]
