"""Only some layers hold targets: every choice is among those, numbered as the model numbers them."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import PeftModel

from layercard import place
from layercard.errors import ModelError, SettingsError
from shapes import ATTENTION, HYBRIDS, adapted_modules, seeded, text_trainer

CHOICES: list[Any] = [
    "auto", "uniform", "last", "first", "middle", "high", "mid", "low", "cumulative", "random", {"prefer": "quality"},
    {"prefer": "speed"}, {"strategy": "last", "fraction": 0.5}, {"strategy": "high", "min_entry": 4},
    {"strategy": "high", "score": "cka"}, {"strategy": "high", "score": "activation"},
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "choice"),
    [
        *(("lfm2", choice) for choice in CHOICES),
        *product(("qwen3_next", "jamba", "nemotron_h"), ("auto", "last", "high")),
    ],
    ids=str,
)
def test_one_of_the_two_layers_with_adapters_is_chosen(family: str, choice: Any, tmp_path: Path) -> None:
    trainer = text_trainer(tmp_path, HYBRIDS[family], ATTENTION)
    run = place(trainer, lora_layers=choice, guard=False)
    assert run.layers in [(3,), (7,)]
    assert "1 of the 2 layers that have adapters, of 8" in run.placement.reason
    assert {name.split("layers.")[1][0] for name in adapted_modules(trainer.model)} == {str(run.layers[0])}
    saved = json.loads((tmp_path / "placement.json").read_text())
    assert (saved["layers"], saved["num_layers"], saved["adaptable"]) == (list(run.layers), 8, [3, 7])


def test_min_entry_counts_in_the_models_numbers(tmp_path: Path) -> None:
    trainer = text_trainer(tmp_path, HYBRIDS["lfm2"], ATTENTION)
    with pytest.raises(SettingsError, match=r"`min_entry` is 8, .* layers 3, 7 of 0–7 have adapters"):
        place(trainer, lora_layers="last", min_entry=8)
    with pytest.raises(SettingsError, match=r"asks for 3 layers; the model has 8, and 2 of them have adapters"):
        place(trainer, lora_layers={"strategy": "last", "num_layers": 3})
    assert place(trainer, lora_layers="auto", min_entry=4, guard=False).layers == (7,)


@pytest.mark.parametrize("family", HYBRIDS)
def test_scores_of_layers_without_adapters_are_not_numbers(family: str, tmp_path: Path) -> None:
    run = place(text_trainer(tmp_path, HYBRIDS[family], ATTENTION), lora_layers="high", guard=False)
    found = run.scores["resnorm"]
    assert np.flatnonzero(np.isfinite(found.importance)).tolist() == [3, 7]
    assert run.layers == (3 if found.importance[3] > found.importance[7] else 7,)
    assert [value is None for value in found.to_dict()["importance"]] == [layer not in (3, 7) for layer in range(8)]


def test_a_layer_without_adapters_is_one_error_that_lists_those_with(tmp_path: Path) -> None:
    trainer = text_trainer(tmp_path, HYBRIDS["jamba"], ATTENTION)
    with pytest.raises(SettingsError, match=r"layers 1, 4 of 0–7, where the model has no adapters.*layers 3, 7 of 0–7"):
        place(trainer, lora_layers=[1, 3, 4])
    assert {n.split("layers.")[1][0] for n in adapted_modules(trainer.model)} == {"3", "7"}


def test_targets_outside_the_layers_alone_are_refused_whatever_the_strategy(tmp_path: Path) -> None:
    for choice in ("auto", "last", "high", [3]):
        with pytest.raises(ModelError, match=r"None of the 8 layers.*adapts `lm_head`.*The layers hold .*`q_proj`"):
            place(text_trainer(tmp_path, HYBRIDS["qwen3_next"], ["lm_head"]), lora_layers=choice)


@pytest.mark.parametrize("family", HYBRIDS)
def test_all_layers_that_have_adapters_are_all_layer_lora(family: str, tmp_path: Path) -> None:
    """Nothing is lost, and steps are timed all the same: backpropagation ends at layer 3, which the host's does not."""
    changes = {"max_steps": 200, "activation_checkpointing": True}
    run = place(text_trainer(tmp_path, HYBRIDS[family], ATTENTION, **changes), lora_layers=[3, 7], measure_budget=0.5)
    assert run.placement.is_all
    run.host.trainer.train()
    report = run.report
    assert report.quality["share_kept"] == 1.0
    assert report.backward_layers == (3, 4, 5, 6, 7)
    assert report.step_speedup is not None
    assert report.adaptable == (3, 7)


def test_the_saved_adapter_holds_the_chosen_layers(tmp_path: Path) -> None:
    trainer = text_trainer(tmp_path, HYBRIDS["qwen3_next"], ATTENTION)
    place(trainer, lora_layers="auto", guard=False)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    again = PeftModel.from_pretrained(seeded(HYBRIDS["qwen3_next"]), tmp_path / "saved")
    assert adapted_modules(again) == adapted_modules(trainer.model)
