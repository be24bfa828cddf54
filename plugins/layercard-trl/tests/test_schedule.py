"""A schedule under SFTTrainer: the adapter is that of freezing the lower layers by hand, with 4-bit weights too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from layercard.anatomy.layers import find_layers
from layercard_trl.sft import parse, run

KINDS = {
    "lora": [],
    "qlora": ["--load_in_4bit", "--use_bnb_nested_quant", "--dtype", "bfloat16"],
    "packing, accumulation": ["--packing", "--gradient_accumulation_steps", "2"],
}


class FreezeLowerHalf(TrainerCallback):
    """Stops layers 0 and 1 from learning at the third step; knows nothing of layercard."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2:
            for layer in find_layers(model).layers[:2]:
                for name, parameter in layer.named_parameters():
                    if "lora_" in name:
                        parameter.requires_grad_(False)
                        parameter.grad = None


def by_hand(arguments: list[str], output: Path) -> None:
    """Train every layer by TRL alone, the lower half frozen on the way."""
    from datasets import load_dataset
    from trl import SFTTrainer, get_peft_config, get_quantization_config

    (script, training, model, _, _), _, _ = parse(arguments)
    training.output_dir = str(output)
    training.model_init_kwargs = {"dtype": model.dtype}
    trainer = SFTTrainer(
        model.model_name_or_path,
        args=training,
        train_dataset=load_dataset(script.dataset_name, split="train"),
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    trainer.add_callback(FreezeLowerHalf())
    trainer.train()
    trainer.save_model()


@pytest.mark.parametrize("kind", KINDS)
def test_trains_what_freezing_by_hand_trains(model_folder, data_folder, tmp_path, kind):
    arguments = [
        *("--model_name_or_path", str(model_folder), "--dataset_name", str(data_folder)),
        *("--output_dir", str(tmp_path / "out"), "--max_length", "40", "--max_steps", "4", "--lora_r", "4"),
        *("--per_device_train_batch_size", "2", "--learning_rate", "0.01", "--report_to", "none", "--bf16", "false"),
        *("--use_cpu", "--use_peft", "--lora_target_modules", "all-linear", "--lora_dropout", "0", *KINDS[kind]),
    ]
    placed = run([*arguments, "--lora_layers", "auto", "--lora_layers_schedule", "0.5:0.5"])
    assert placed is not None
    assert [part["layers"] for part in placed.report.schedule] == [[0, 1, 2, 3], [2, 3]]
    assert all(part["gradient_entry"]["moved"] for part in placed.report.schedule)
    by_hand(arguments, tmp_path / "hand")
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("out", "hand"))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-6, atol=1e-7, msg=lambda text, n=name: f"{n}: {text}")
