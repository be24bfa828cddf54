"""Layers that the user gave PEFT are the layers there are: `auto` chooses among them, and all of them are all-layer LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback

from layercard import place
from layercard.errors import SettingsError
from shapes import adapted_modules, text_trainer
from tiny import tiny_examples, tiny_model, tiny_tokenizer
from trainers import equal, train, trained

trl = pytest.importorskip("trl")
REENTRANT = [True, False]
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "layers_to_transform": {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [2, 3]},
    "with a pattern": {
        "target_modules": ["q_proj", "v_proj"], "layers_to_transform": [2, 3], "layers_pattern": "layers",
    },
    "regular expression": {"target_modules": r"model\.layers\.[23]\..*\.(q_proj|v_proj|down_proj)"},
    "full names": {"target_modules": [f"model.layers.{i}.self_attn.{m}" for i in (2, 3) for m in ("q_proj", "v_proj")]},
    "excluded": {"target_modules": ["q_proj"], "exclude_modules": r".*layers\.[01]\..*"},
}  # fmt: skip


def sft(folder: Path, *, reentrant: bool = False, **changes: Any) -> Any:
    rows = [{"input_ids": row["input_ids"]} for row in tiny_examples(40)]
    args = trl.SFTConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, save_strategy="no",
        per_device_train_batch_size=2, learning_rate=1e-2, activation_checkpointing=True, max_length=None,
        activation_checkpointing_kwargs={"use_reentrant": reentrant}, **({"max_steps": 20} | changes),
    )  # fmt: skip
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], layers_to_transform=[2, 3], lora_dropout=0.1)
    return trl.SFTTrainer(
        tiny_model("llama"), args=args, train_dataset=Dataset.from_list(rows), peft_config=config,
        processing_class=tiny_tokenizer(),
    )  # fmt: skip


@pytest.mark.parametrize("reentrant", REENTRANT)
def test_the_users_own_layers_train_to_the_same_weights_and_end_backpropagation(
    reentrant: bool, tmp_path: Path
) -> None:
    plain, placed = (sft(tmp_path / name, reentrant=reentrant) for name in ("plain", "placed"))
    start = trained(plain.model)
    assert equal(start, trained(placed.model))
    run = place(placed, lora_layers=[2, 3])
    assert run.placement.is_all
    train(plain)
    train(placed)
    assert equal(trained(plain.model), trained(placed.model))
    assert not equal(start, trained(placed.model))
    assert run.report.backward_layers == (2, 3)
    assert run.report.quality["share_kept"] == 1.0


class StopEarly(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= 2


def test_the_users_own_layers_are_timed_against_the_run_without_layercard(tmp_path: Path) -> None:
    """Both adapt layers 2 and 3; only one of them runs layers 0 and 1 backward."""
    trainer = sft(tmp_path, max_steps=1000)
    trainer.add_callback(StopEarly())
    run = place(trainer, lora_layers=[2, 3], measure_budget=0.5)
    trainer.train()
    assert run.report.step_speedup is not None
    assert run.report.baseline.trainable_parameters == run.report.placed.trainable_parameters


@pytest.mark.parametrize("reentrant", REENTRANT)
def test_auto_and_indices_choose_among_the_users_own_layers(reentrant: bool, tmp_path: Path) -> None:
    for number, choice in enumerate(("auto", "high", {"prefer": "quality"}, [3])):
        trainer = sft(tmp_path / str(number), reentrant=reentrant)
        run = place(trainer, lora_layers=choice, guard=False)
        assert len(run.layers) == 1
        assert set(run.layers) < {2, 3}
        trainer.train()
        assert run.report.backward_layers == tuple(range(run.layers[0], 4))


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_however_the_layers_were_named(kind: str, tmp_path: Path) -> None:
    lora = dict(CONFIGURATIONS[kind])
    trainer = text_trainer(tmp_path, lambda: tiny_model("llama"), lora.pop("target_modules"), lora=lora)
    with pytest.raises(SettingsError, match=r"layer 1 of 0–3, where the model has no adapters.*layers 2–3 of 0–3"):
        place(trainer, lora_layers=[1])
    run = place(trainer, lora_layers="auto", guard=False)
    assert run.layers == (3,)
    assert "1 of the 2 layers that have adapters, of 4" in run.placement.reason
    assert all(".3." in name for name in adapted_modules(trainer.model))
