from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from runs import ENVIRONMENT

from tiny import tiny_model, tiny_tokenizer

os.environ.update(ENVIRONMENT)


def _rows(count: int) -> list[dict[str, Any]]:
    return [
        {"instruction": f"add {i} and {i * i}", "input": "", "output": f"{i + i * i}{'!' * (i % 5)}"}
        for i in range(count)
    ]


def _pairs(count: int) -> list[dict[str, Any]]:
    return [
        {"system": "", "question": f"{i}+{i}", "chosen": str(2 * i), "rejected": "x" * (1 + i % 4)}
        for i in range(count)
    ]


def _judged(count: int) -> list[dict[str, Any]]:
    return [
        {
            "system": "",
            "question": f"{i}+{i}",
            "completion": str(2 * i) if i % 2 else "x" * (1 + i % 4),
            "label": bool(i % 2),
        }
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama of four layers, its tokenizer, and data for every kind of run."""
    folder = tmp_path_factory.mktemp("axolotl")
    model = tiny_model("llama", max_position_embeddings=256)
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    for name, rows in (("sft", _rows(48)), ("dpo", _pairs(24)), ("kto", _judged(24))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
