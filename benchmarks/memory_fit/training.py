"""Where both parts of the benchmark measure: a bare model, and a TRL trainer where its training begins."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from common import LLAMA_TARGETS
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from layercard.anatomy.layers import LayerStack, find_layers
from layercard_trl.host import SFTHost
from tiny import tiny_tokenizer


def bare(model: Any) -> tuple[Any, LayerStack]:
    """Return the model of the same configuration without weights, and its layers."""
    with torch.device("meta"):
        made = type(model)(copy.deepcopy(model.config))
    return made, find_layers(made)


class InTraining(hf.TrainerCallback):
    """Runs `work(host)` where training begins, then stops the training."""

    def __init__(self, host: Any, work: Callable[[Any], None]) -> None:
        self.host, self.work = host, work

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Work on the prepared model."""
        with self.host.preserved():
            self.work(self.host)
        control.should_training_stop = True


def in_trl(model: Any, work: Callable[[Any], None], *, rows: int, width: int, checkpointing: bool, bf16: bool) -> None:
    """Run `work` inside `SFTTrainer.train()` on full rows of random tokens, all layers adapted."""
    generator = torch.Generator().manual_seed(0)
    data = [{"input_ids": torch.randint(5, 399, (width,), generator=generator).tolist()} for _ in range(64)]
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            folder, use_cpu=True, bf16=bf16, max_steps=1000, per_device_train_batch_size=rows, report_to=[],
            activation_checkpointing=checkpointing, max_length=width, save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        lora = LoraConfig(r=16, target_modules=LLAMA_TARGETS, task_type="CAUSAL_LM")
        trainer = SFTTrainer(
            model, config, train_dataset=Dataset.from_list(data), processing_class=tiny_tokenizer(), peft_config=lora
        )
        trainer.add_callback(InTraining(SFTHost(trainer), work))
        trainer.train()
