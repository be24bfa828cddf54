"""The pairs of a model and a data set, and their examples: short ones, split so that learning rates are chosen on others.

Training rows come in blocks of one epoch each, held-out rows in two. Block 0 of either belongs to the choice of learning
rates; seed s trains on block s + 1, and every comparison is judged by held-out block 1.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from layercard.data import IGNORED, Tokens, tokenize_records

RATE_BLOCK = 0
JUDGED_BLOCK = 1
READ_AT_ONCE = 256


@dataclass(frozen=True)
class Pair:
    """A model and a data set; examples of at most `max_tokens`, `batch` a step, judged by `heldout` examples."""

    model: str
    data: str
    batch: int
    max_tokens: int
    heldout: int

    @property
    def name(self) -> str:
        """What its folder of results is called."""
        return f"{self.model}-{self.data}"

    def inputs(self) -> dict[str, Any]:
        """Return what results depend on."""
        return asdict(self)


FOLDERS = {"smollm2": "SmolLM2-135M-Instruct", "gemma": "gemma-3-270m"}
"""What `benchmarks/models.py` calls the models."""
PAIRS = (
    Pair("smollm2", "e2e", 3, 64, 30),
    Pair("smollm2", "arc_easy", 4, 56, 40),
    Pair("smollm2", "gsm8k", 2, 96, 20),
    Pair("gemma", "arc_easy", 4, 56, 40),
    Pair("smollm2", "mathqa", 2, 80, 30),
    Pair("gemma", "e2e", 3, 64, 20),
)
"""Some 160 tokens a step, so that six pairs take hours and not days on a CPU."""


@dataclass(frozen=True)
class Subject:
    """A pair with what its runs are made of: the base model, of which every run takes a copy, tokenizer and data."""

    pair: Pair
    base: Any
    tokenizer: Any
    prepared: Path
    """The folder that `prepare_data.py` wrote."""

    def training_rows(self, rows: slice) -> list[Tokens]:
        """Return tokenized training examples, from `rows.start` to before `rows.stop`."""
        return self._rows("train.jsonl", rows.start, rows.stop - rows.start)

    def heldout_rows(self, block: int) -> list[Tokens]:
        """Return a block of tokenized held-out examples."""
        return self._rows("heldout.jsonl", block * self.pair.heldout, self.pair.heldout)

    def _rows(self, file: str, skip: int, count: int) -> list[Tokens]:
        """Return `count` rows after the first `skip` of those that fit the pair's length."""
        path, found = self.prepared / self.pair.data / file, []
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would end lines within texts too
        for start in range(0, len(lines), READ_AT_ONCE):
            records = [json.loads(line) for line in lines[start : start + READ_AT_ONCE] if line]
            plain = [{"prompt": r["prompt"], "completion": r["completion"]} for r in records]
            if plain:
                tokens = tokenize_records(plain, self.tokenizer, max_length=10**6, source=str(path))
                found += [row for row in tokens if len(row["input_ids"]) <= self.pair.max_tokens]
            if len(found) >= skip + count:
                return found[skip : skip + count]
        raise ValueError(
            f"{path} has {len(found)} examples of at most {self.pair.max_tokens} tokens; {skip + count} are needed."
        )


def load(pair: Pair, models: Path, prepared: Path, dtype: torch.dtype) -> Subject:
    """Return the pair with its model in `dtype`; attention is eager, the faster one at such lengths on CPUs."""
    folder = models / FOLDERS[pair.model]
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return Subject(pair, base, AutoTokenizer.from_pretrained(folder), prepared)


def labelled(rows: list[Tokens]) -> float:
    """Return how many tokens an example learns from, on average."""
    return sum(sum(label != IGNORED for label in row["labels"][1:]) for row in rows) / len(rows)
