"""Measuring inside `SFTTrainer.train()` shows in nothing that TRL trains, logs or counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from layercard import place
from trainers import LONG, StopAfter, equal, logs, train, trained

LAYERS = [2, 3]
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults, with checkpointing": {},
    "reentrant checkpointing": {"activation_checkpointing_kwargs": {"use_reentrant": True}},
    "selective checkpointing": {"activation_checkpointing_kwargs": {"selective": True}},
    "every second layer": {"activation_checkpointing_kwargs": {"every_n_layers": 2}},
    "packing and accumulation": {"packing": True, "gradient_accumulation_steps": 2},
    "padding-free": {"padding_free": True, "max_length": None},
    "NEFTune": {"neftune_noise_alpha": 5.0, "activation_checkpointing": False},
}


def save_attention(model: Any) -> None:
    """Give the base model TRL's policy: TRL 1.16 gives it to the PeftModel, which transformers 5.23 and 5.24 do not ask."""
    from trl.models import enable_selective_activation_checkpointing

    enable_selective_activation_checkpointing(model.get_base_model())


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_training_is_that_of_a_hand_written_configuration(
    sft_trainer: Callable[..., Any], settings: dict[str, Any]
) -> None:
    common = {"max_steps": LONG, "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, **settings}
    lora = {"lora_dropout": 0.1, "target_modules": ["q_proj", "down_proj"]}
    placed = sft_trainer(count=60, lora=lora, **common)
    by_hand = sft_trainer(count=60, lora={**lora, "layers_to_transform": LAYERS}, **common)
    if "selective" in settings.get("activation_checkpointing_kwargs", {}):
        for trainer in (placed, by_hand):
            save_attention(trainer.model)
    run = place(placed, lora_layers=LAYERS, measure_budget=0.5, guard_budget=0.02)
    values = trained(placed.model)
    with torch.no_grad():
        for name, parameter in by_hand.model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(values[name])
    for trainer in (placed, by_hand):
        trainer.add_callback(StopAfter(4))
        train(trainer)
    assert run.report.step_speedup is not None
    assert run.report.backward_layers == tuple(LAYERS)
    assert run.report.quality["steps"] >= 3
    assert run.report.quality["heldout_from"] == "training set"
    assert run.report.quality["heldout_loss"]["all_layers"] < run.report.quality["heldout_loss"]["before"]
    assert {"mean_token_accuracy", "num_tokens", "entropy"} <= logs(placed)[0].keys()
    assert logs(placed) == logs(by_hand)
    assert placed._total_train_tokens == by_hand._total_train_tokens > 0
    assert equal(trained(placed.model), trained(by_hand.model))
    if "selective" in settings.get("activation_checkpointing_kwargs", {}):
        functions = [layer._gradient_checkpointing_func for layer in run.stack.layers]
        assert all("context_fn" in function.keywords for function in functions)
