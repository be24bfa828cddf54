"""A trainer that builds its model in `train()` cannot be placed: `place` says so, and what works instead does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers as hf

import layercard
from adapted import lora_config, with_adapters
from layercard.errors import HostError
from tiny import collate, tiny_examples, tiny_model
from trainers import Rows, arguments


def model() -> Any:
    return with_adapters(tiny_model("llama"), lora_config("llama"))


def trainer(folder: Path, **how: Any) -> Any:
    return hf.Trainer(args=arguments(folder), train_dataset=Rows(tiny_examples(12)), data_collator=collate, **how)


@pytest.mark.parametrize("layers", [[2, 3], "auto", "high"])
def test_place_refuses_model_init_and_names_hyperparameter_search(tmp_path: Path, layers: Any) -> None:
    built = trainer(tmp_path, model_init=model)
    before = [name for name, _ in built.model.named_parameters()]
    with pytest.raises(HostError, match=r"`model_init`.*`hyperparameter_search`.*for each trial.*`place`"):
        layercard.place(built, lora_layers=layers)
    assert [name for name, _ in built.model.named_parameters()] == before
    assert not (tmp_path / "placement.json").exists()


def test_a_trainer_for_each_trial_works(tmp_path: Path) -> None:
    for rate in (1e-3, 1e-2):
        each = trainer(tmp_path / str(rate), model=model())
        each.args.learning_rate = rate
        run = layercard.place(each, lora_layers=[2, 3], measure=False, guard=False)
        each.train()
        assert run.report.backward_layers == (2, 3)
