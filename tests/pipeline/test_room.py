"""In one process a model that the training device cannot hold is not probed: a score is refused, and `auto` goes by depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapted import assert_same, fingerprint
from layercard import place
from layercard.errors import HostError
from layercard.pipeline.before import room
from trainers import LONG, make_trainer


def with_free(share: float, trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the training device have so much free, as a share of the model's weights."""
    size = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    monkeypatch.setattr(room, "free_bytes", lambda device: int(share * size))


def test_a_score_is_refused_with_the_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path)
    with_free(1.2, trainer, monkeypatch)
    before = fingerprint(trainer.model)
    with pytest.raises(HostError) as refused:
        place(trainer, lora_layers="low")
    assert "The unsharded model has " in str(refused.value)
    assert "this run trains it in one process, so there is nothing to shard it over" in str(refused.value)
    assert "`fsdp_config: {version: 2}`" in str(refused.value)
    assert_same(before, fingerprint(trainer.model))


def test_without_a_score_it_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    trainer = make_trainer(tmp_path, max_steps=LONG)
    with_free(1.2, trainer, monkeypatch)
    assert place(trainer, guard=False).layers
    said = " ".join(capfd.readouterr().err.split())
    assert "Chosen by depth without a look at the data, which no score needs here: The unsharded model has " in said


def test_a_model_with_room_is_probed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path)
    with_free(1.3, trainer, monkeypatch)
    statistics = place(trainer, lora_layers="low", guard=False).statistics
    assert statistics is not None
    assert not any("in shards" in note for note in statistics.notes)
