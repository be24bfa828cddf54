"""What `--quick` runs in place of TRL's tests: one training with adapters, judged as TRL's tests judge."""

from __future__ import annotations

from pathlib import Path

import torch
from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer


def test_every_adapter_trains(tmp_path: Path) -> None:
    rows = load_dataset("trl-internal-testing/zen", "standard_language_modeling", split="train")
    args = SFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, max_steps=2, learning_rate=0.1)
    model = "trl-internal-testing/tiny-Qwen2ForCausalLM-2.5"
    trainer = SFTTrainer(model=model, args=args, train_dataset=rows, peft_config=LoraConfig())
    before = {name: value.clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
    trainer.train()
    for name, value in before.items():
        assert not torch.equal(value, trainer.model.get_parameter(name)), f"{name} has not changed."
