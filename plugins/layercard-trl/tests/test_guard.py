"""The guard in TRL's trainers: on 4-bit weights, on packed rows, for preferences, and through the flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from layercard import place
from layercard.errors import QualityError
from tiny import tiny_model, tiny_tokenizer
from trainers import StopAfter, equal, logs, train, trained

LAYERS = [2, 3]
COMMON: dict[str, Any] = {
    "max_steps": 3000, "use_cpu": True, "bf16": False, "report_to": "none", "max_length": 40, "learning_rate": 1e-2,
    "per_device_train_batch_size": 3, "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True,
}  # fmt: skip
LORA = {"r": 4, "lora_dropout": 0.1, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
GUARDED = {"guard_budget": 0.015, "measure": False}


def _sums(first: int, last: int) -> Dataset:
    rows = [{"prompt": f"add {i} and {i * i}: ", "completion": f"{i + i * i}"} for i in range(first, last)]
    return Dataset.from_list(rows)


def _nf4(folder: Path) -> Any:
    tiny_model("llama", hidden_size=64, intermediate_size=64).save_pretrained(folder)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, device_map={"": "cpu"})


def _trained(trainer: Any, guard: bool) -> tuple[dict[str, Any], dict[str, torch.Tensor], Any]:
    run = place(trainer, lora_layers=LAYERS, guard=guard, **GUARDED)
    trainer.add_callback(StopAfter(3))
    train(trainer)
    return dict(run.report.quality), trained(trainer.model), logs(trainer)


def _same_with_and_without(build: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    quality, values, log = _trained(build("guarded"), True)
    torch.manual_seed(0)
    _, other, other_log = _trained(build("plain"), False)
    assert equal(values, other)
    assert log == other_log
    return quality


def test_qlora_trains_as_without_a_guard(tmp_path: Path) -> None:
    from trl import SFTConfig, SFTTrainer

    def build(name: str) -> Any:
        return SFTTrainer(
            _nf4(tmp_path / name),
            args=SFTConfig(output_dir=str(tmp_path / name), **COMMON),
            train_dataset=_sums(0, 40),
            eval_dataset=_sums(40, 60),
            processing_class=tiny_tokenizer(),
            peft_config=LoraConfig(**LORA),
        )

    quality = _same_with_and_without(build)
    assert quality["heldout_from"] == "eval_dataset"
    assert quality["heldout_loss"]["all_layers"] < quality["heldout_loss"]["before"]
    assert quality["heldout_loss"]["placed"] < quality["heldout_loss"]["before"]


@pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
def test_packed_rows_are_judged_and_train_as_without_a_guard(tmp_path: Path, strategy: str) -> None:
    from trl import SFTConfig, SFTTrainer

    def build(name: str) -> Any:
        packed = {"packing": True, "packing_strategy": strategy, "gradient_accumulation_steps": 2}
        return SFTTrainer(
            tiny_model("llama"),
            args=SFTConfig(output_dir=str(tmp_path / name), **(COMMON | packed)),
            train_dataset=_sums(0, 200),
            eval_dataset=_sums(200, 280),
            processing_class=tiny_tokenizer(),
            peft_config=LoraConfig(**LORA),
        )

    quality = _same_with_and_without(build)
    assert quality["share_in_trial"] is not None
    assert quality["heldout_loss"]["all_layers"] < quality["heldout_loss"]["before"]


def test_preferences_are_judged_by_the_preference_loss(tmp_path: Path) -> None:
    from trl import DPOConfig, DPOTrainer

    def build(name: str) -> Any:
        rows = [{"prompt": f"{i}+{i}=", "chosen": str(2 * i), "rejected": "x" * (1 + i % 4)} for i in range(40)]
        return DPOTrainer(
            tiny_model("llama"),
            args=DPOConfig(output_dir=str(tmp_path / name), activation_checkpointing=False, **COMMON),
            train_dataset=Dataset.from_list(rows),
            processing_class=tiny_tokenizer(),
            peft_config=LoraConfig(**LORA),
        )

    quality = _same_with_and_without(build)
    assert quality["heldout_loss"]["before"] == pytest.approx(0.6931, abs=1e-4)
    assert quality["heldout_loss"]["all_layers"] < 0.69
    assert quality["share_in_trial"] is not None


def test_flags_stop_a_run_with_the_guards_exit_code(model_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    from layercard_trl.sft import run

    flags = {
        "model_name_or_path": model_folder, "dataset_name": data_folder, "output_dir": tmp_path / "out",
        "max_steps": 300, "learning_rate": 0.01, "per_device_train_batch_size": 4, "lora_layers": "[0]", "lora_r": 4,
        "lora_layers_on_quality_loss": "stop", "lora_layers_quality_threshold": 1.0, "lora_layers_guard_budget": 0.2,
    }  # fmt: skip
    line = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    more = ["--use_peft", "--use_cpu", "--bf16", "False", "--report_to", "none", "--save_strategy", "no"]
    with pytest.raises(QualityError) as stopped:
        run([*line, *more, "--lora_layers_measure", "False", "--lora_target_modules", "q_proj", "down_proj"])
    assert stopped.value.exit_code == 4
    assert not (tmp_path / "out" / "adapter_config.json").exists()
