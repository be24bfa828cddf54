"""Multi-label classification: the width of a batch may be the number of labels, and changes no score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer

import layercard
from adapted import lora_config, with_adapters
from tiny import ENCODERS
from trainers import Rows, arguments

LABELS = 8


def model_and_rows() -> tuple[Any, list[dict[str, Any]]]:
    import transformers as hf

    config = ENCODERS["bert"]()
    config.num_labels, config.problem_type = LABELS, "multi_label_classification"
    torch.manual_seed(0)
    model = hf.BertForSequenceClassification(config)
    generator = torch.Generator().manual_seed(1)
    rows = []
    for number in range(16):
        length = LABELS if number % 2 == 0 else int(torch.randint(3, LABELS, (1,), generator=generator))
        rows.append(
            {
                "input_ids": torch.randint(3, 100, (length,), generator=generator).tolist(),
                "labels": torch.randint(0, 2, (LABELS,), generator=generator).float().tolist(),
            }
        )
    return with_adapters(model, lora_config("bert")), rows


def padded_to(width: int) -> Any:
    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        widest = max(width, *(len(row["input_ids"]) for row in rows))
        filled = [row["input_ids"] + [0] * (widest - len(row["input_ids"])) for row in rows]
        mask = [[1] * len(row["input_ids"]) + [0] * (widest - len(row["input_ids"])) for row in rows]
        labels = [row["labels"] for row in rows]
        return {k: torch.tensor(v) for k, v in (("input_ids", filled), ("attention_mask", mask), ("labels", labels))}

    return collate


def test_the_same_rows_give_the_same_scores_at_every_width_and_batch_size(tmp_path: Path) -> None:
    found = []
    for width, size in ((8, 2), (9, 2), (12, 4), (8, 1)):
        model, rows = model_and_rows()
        args = arguments(tmp_path / f"{width}-{size}", per_device_train_batch_size=size)
        trainer = Trainer(model=model, args=args, train_dataset=Rows(rows), data_collator=padded_to(width))
        run = layercard.place(trainer, lora_layers="high", probe_examples=16)
        assert run.scores is not None
        found.append((run.layers, run.scores["resnorm"].raw))
    for layers, raw in found[1:]:
        assert layers == found[0][0]
        np.testing.assert_allclose(raw, found[0][1], rtol=1e-5)
