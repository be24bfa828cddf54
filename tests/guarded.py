"""Runs in which the guard can tell right from wrong: only the last two of four layers can help.

The labels are what a model says; the base model is that model with random matrices added in the last two layers. In the
first two layers attention writes nothing, and adapters sit on what it reads, so training those changes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from adapted import lora_config, take_values, with_adapters
from layercard.hosts.plain import PlainHost
from tiny import collate, tiny_examples, tiny_model
from trainers import Rows, StopAfter, arguments, train

RIGHT, WRONG = (2, 3), (0, 1)


def perturbed() -> tuple[Any, list[dict[str, Any]]]:
    """Return the base model, and examples labelled by the model that it was."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
        for number, layer in enumerate(model.model.layers):
            layer.self_attn.o_proj.weight.mul_(0 if number in WRONG else 8)
        examples = tiny_examples(80, low=24, high=40)
        for example in examples:
            said = model(input_ids=torch.tensor([example["input_ids"]])).logits[0].argmax(-1).tolist()
            example["labels"] = [-100, *said[:-1]]
        generator = torch.Generator().manual_seed(3)
        for layer in model.model.layers[2:]:
            weight = layer.self_attn.v_proj.weight
            rows, columns = (
                torch.randn(size, generator=generator) for size in ((len(weight), 2), (2, weight.shape[1]))
            )
            weight.add_(2 * weight.std() * rows @ columns)
    return model, examples


def guarded_trainer(
    folder: Path, *, layers: list[int] | None = None, stop_after: int = 2, held_out: bool = True, kind: type = Trainer,
    lora: dict[str, Any] | None = None, **changes: Any,
) -> Any:  # fmt: skip
    """Return a trainer of 400 planned steps over that model, adapters on all layers or by hand on `layers`."""
    model, examples = perturbed()
    chosen = {} if layers is None else {"layers_to_transform": layers}
    config = lora_config(
        "llama", target_modules=["q_proj", "v_proj"], **{"lora_dropout": 0.1, **(lora or {})}, **chosen
    )
    trainer = kind(
        model=with_adapters(model, config),
        args=arguments(folder, **{"max_steps": 400, "per_device_train_batch_size": 4, **changes}),
        train_dataset=Rows(examples[16:]),
        eval_dataset=Rows(examples[:16]) if held_out else None,
        data_collator=collate,
    )
    trainer.add_callback(StopAfter(stop_after))
    return trainer


ALL_THAT_COUNTS: dict[str, Any] = {
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 0.05,
    "weight_decay": 0.1,
    "lora": {"lora_dropout": 0.0},
}
"""What a trial has to do as a trainer does it: accumulation, clipping, weight decay, token counts."""


class InOrder(Trainer):
    """Reads its rows as they stand."""

    def _get_train_sampler(self, *args: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def loss_of_a_real_run(
    folder: Path, tried: Any, quality: dict[str, Any], *callbacks: TrainerCallback, layers: list[int] | None = None
) -> float:
    """Train a trainer of its own on the very rows of the trial of `tried`, in their order; return its held-out loss."""
    steps = quality["steps"]
    real = guarded_trainer(
        folder / "real", kind=InOrder, layers=layers, stop_after=steps, lr_scheduler_type="constant", **ALL_THAT_COUNTS
    )
    take_values(real.model, guarded_trainer(folder / "source").model)
    micros = [micro for update in PlainHost(tried).update_batches(steps, 0) for micro, _ in update]
    rows = [(ids[mask == 1].tolist(), labels[mask == 1].tolist()) for micro in micros for ids, mask, labels in zip(
        micro["input_ids"], micro["attention_mask"], micro["labels"], strict=True)]  # fmt: skip
    real.train_dataset = Rows([{"input_ids": ids, "labels": labels} for ids, labels in rows])
    for callback in callbacks:
        real.add_callback(callback)
    train(real)
    real.model.eval()
    held = PlainHost(real).heldout_batches(quality["examples"]).batches
    with torch.no_grad():
        losses = [real.model(**batch).loss.item() for batch in held]
    return float(sum(losses) / len(losses))
