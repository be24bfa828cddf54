from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from layercard.errors import DataError
from layercard.study.pace import Pace, Part
from layercard.study.store import Store


def refuse() -> dict[str, Any]:
    raise AssertionError("made again")


def test_a_part_is_made_once_for_what_it_depends_on(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "er", {"model": "a"})
    assert store.result("run", lambda: {"x": 1.5}, steps=3) == {"x": 1.5}
    assert store.has("run", steps=3)
    assert Store(tmp_path / "deep" / "er", {"model": "a"}).result("run", refuse, steps=3) == {"x": 1.5}
    for other, own in ((Store(tmp_path / "deep" / "er", {"model": "b"}), 3), (store, 4)):
        assert not other.has("run", steps=own)


def test_a_part_that_failed_is_not_kept(tmp_path: Path) -> None:
    store = Store(tmp_path, {})
    with pytest.raises(AssertionError):
        store.result("run", refuse)
    with pytest.raises(ValueError, match="JSON"):
        store.result("run", lambda: {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_spoilt_file_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path, {})
    store.result("run", lambda: {"x": 1})
    (file,) = tmp_path.iterdir()
    file.write_text('{"result": ')
    with pytest.raises(DataError, match=file.name):
        store.result("run", refuse)


def test_progress_says_what_is_left_and_finished_parts_are_not_made(tmp_path: Path) -> None:
    said: list[str] = []
    store = Store(tmp_path, {})
    parts = [Part(f"run-{i}", "training", {"i": i}, lambda i=i: {"metrics": {"loss": float(i)}}) for i in range(3)]
    assert [r["metrics"]["loss"] for r in Pace(said.append).through(store, parts)] == [0.0, 1.0, 2.0]
    assert said[0].startswith("[1/3] run-0: loss 0.0000") and said[0].endswith("left")
    assert not said[-1].endswith("left")
    said.clear()
    again = [Part(part.name, part.kind, part.own, refuse) for part in parts]
    assert len(list(Pace(said.append).through(store, again))) == 3
    assert said == ["3 of 3 parts were finished before."]
