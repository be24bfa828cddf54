"""`LayerPlacement`: its bounds, and that placement.json is read back or refused with one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from layercard import LayerPlacement
from layercard.errors import PlacementError

EXPECTED = {"outcome": "high", "share_kept": 0.97, "step_seconds_ratio": None}
PLACEMENT = LayerPlacement((3, 5), 6, "high", "resnorm", "by hand", cards=("a",), expected=EXPECTED)


def test_it_survives_its_file(tmp_path: Path) -> None:
    PLACEMENT.save(tmp_path / "new" / "placement.json")
    assert LayerPlacement.load(tmp_path / "new" / "placement.json") == PLACEMENT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["placement.json"]


def test_it_is_read_out_of_a_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"placement": PLACEMENT.to_dict(), "expected": {}}))
    assert LayerPlacement.load(path) == PLACEMENT


def test_the_entry_is_the_lowest_layer() -> None:
    assert PLACEMENT.entry == 3
    assert not PLACEMENT.is_all
    assert LayerPlacement((0, 1), 2, "last", None, "").is_all


def test_the_digest_depends_on_layers_and_depth_alone() -> None:
    other = LayerPlacement((3, 5), 6, "random", None, "else")
    assert other.digest() == PLACEMENT.digest()
    assert len({PLACEMENT, other}) == 2  # hashable, whatever is expected
    assert LayerPlacement((3, 5), 7, "high", "resnorm", "by hand").digest() != PLACEMENT.digest()


@pytest.mark.parametrize("layers", [(), (6,), (-1, 2), (2, 1), (1, 1)])
def test_impossible_layers_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(PlacementError):
        LayerPlacement(layers, 6, "indices", None, "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema_version 99"),
        ({"layers": "3"}, "a list of whole numbers"),
        ({"layers": [True]}, "a list of whole numbers"),
        ({"num_layers": "6"}, "`num_layers` is '6'"),
        ({"layers": [9]}, "layers 0–5"),
        ({"expected": 0.9}, "`expected` is 0.9"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "placement.json"
    path.write_text(json.dumps(PLACEMENT.to_dict() | change))
    with pytest.raises(PlacementError, match=message):
        LayerPlacement.load(path)


@pytest.mark.parametrize(("text", "message"), [("{", "cannot be read as JSON"), ("[]", "holds a list")])
def test_what_is_no_placement_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "placement.json"
    path.write_text(text)
    with pytest.raises(PlacementError, match=message):
        LayerPlacement.load(path)


def test_a_key_that_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "placement.json"
    values = PLACEMENT.to_dict()
    del values["reason"]
    path.write_text(json.dumps(values))
    with pytest.raises(PlacementError, match="lacks 'reason'"):
        LayerPlacement.load(path)
