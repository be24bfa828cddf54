"""What trains below the layers is said before training, and the step time predicted from it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from layercard import place
from shapes import with_lora
from tiny import collate, tiny_examples, tiny_model
from trainers import Rows, arguments

BELOW: dict[str, dict[str, Any]] = {
    "modules_to_save": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "tied": {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "trainable_token_indices": {"trainable_token_indices": [3, 4]},
    "adapters": {"target_modules": ["q_proj", "embed_tokens"]},
}


def base(kind: str) -> Any:
    return tiny_model("llama", num_layers=6, tie_word_embeddings=kind == "tied")


def make_trainer(folder: Path, kind: str, lora: dict[str, Any], **changes: Any) -> Any:
    from transformers import Trainer

    model = with_lora(base(kind), ["q_proj", "v_proj"], **lora)
    rows = Rows(tiny_examples(40))
    return Trainer(model=model, args=arguments(folder, **changes), train_dataset=rows, data_collator=collate)


def predicted(said: str) -> float:
    """The step time over all-layer LoRA's, from the speedup that is announced."""
    found = re.search(r"Predicted: a step is ([\d.]+)x as fast", said)
    assert found is not None
    return 1 / float(found[1])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", BELOW)
def test_the_prediction_is_that_of_a_run_whose_backward_goes_all_the_way(
    kind: str, checkpointing: bool, tmp_path: Path, capfd: Any
) -> None:
    said = []
    for number, (lora, settings) in enumerate([(BELOW[kind], {}), ({}, {}), (BELOW[kind], {"gradient_entry": False})]):
        trainer = make_trainer(tmp_path / str(number), kind, lora, activation_checkpointing=checkpointing)
        run = place(trainer, lora_layers="last", guard=False, **settings)
        said.append(" ".join(capfd.readouterr().err.split()))
        if number == 0:
            trainer.train()
            assert run.report.gradient_entry["moved"] is False
            obstacle = f"does not end at layer 4, the lowest one adapted: {run.report.gradient_entry['obstacle']}"
            assert "".join(obstacle.split()) in "".join(said[0].split())  # a console breaks long names
            assert run.report.backward_layers == tuple(range(6))
            capfd.readouterr()
    below, free, off = (predicted(text) for text in said)
    assert below == off
    assert free < below < 1
    assert "does not end" not in said[1]


@pytest.mark.parametrize("kind", ["modules_to_save", "tied", "trainable_token_indices"])
def test_it_trains_and_reloads_with_the_prefix_uncached(kind: str, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, kind, BELOW[kind])
    run = place(trainer, lora_layers="last", prefix_cache="on", guard=False)
    trainer.train()
    assert not run.report.prefix_cache["on"]
    trainer.save_model(tmp_path / "saved")
    again = PeftModel.from_pretrained(base(kind), tmp_path / "saved")
    batch = {name: values for name, values in collate(tiny_examples(2)).items() if name != "labels"}
    with torch.no_grad():
        one, other = (model.eval()(**batch).logits for model in (trainer.model, again))
    assert torch.equal(one, other)
