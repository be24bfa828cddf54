"""Answers with unmerged adapters, as act-lora.txt's table 4 times them: time to first token, and tokens a second after it.

One prompt at a time, greedily, with transformers' own `generate` and its cache. Serving engines batch requests and have
kernels for adapters of their own, so what is measured here is not what they would do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from layercard.cost.timing import Clock, Ratio, Timings, Variant, alternate, synchronize
from layercard.cost.untouched import untouched
from layercard.data.chat import IGNORED
from layercard.errors import DataError
from layercard.progress import Progress

Entered = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class InferenceCost:
    """Median seconds to the first token and tokens a second after it; how many times longer the first run takes for both."""

    first_token_seconds: float
    tokens_per_second: float
    first_token_speedup: Ratio
    decode_speedup: Ratio


def measure_inference(
    model: PeftModel,
    batches: Sequence[Mapping[str, Any]],
    entered: Mapping[str, Entered],
    new_tokens: int,
    rounds: int,
) -> dict[str, InferenceCost]:
    """Let every run answer prompts of the batches in turn, `new_tokens` tokens each, at least 2, and return its costs.

    `entered` puts a run in force, by name; the first one is what the others are compared with. One unclocked round warms up.
    Raises `DataError` where a model's positions do not hold prompt and answer.
    """
    prompts = [_prompt(model, batch, new_tokens) for batch in batches]
    with Progress("measuring answers", total=len(entered) * (1 + rounds)) as progress, untouched(model):
        model.eval()
        marks = {name: _Marks() for name in entered}
        variants = [
            Variant(name, block, _answering(model, prompts, new_tokens, marks[name], progress))
            for name, block in entered.items()
        ]
        alternate(variants, rounds=1)
        for kept in marks.values():
            kept.forget()
        alternate(variants, rounds=rounds)
    first = Timings({name: tuple(kept.first) for name, kept in marks.items()})
    later = Timings({name: tuple(kept.later) for name, kept in marks.items()})
    baseline = next(iter(entered))
    return {
        name: InferenceCost(
            first.median(name), 1 / later.median(name), first.ratio(baseline, name), later.ratio(baseline, name)
        )
        for name in entered
    }


class _Marks(BaseStreamer):
    """Is given every token as it is made, and keeps the seconds to the first one and of each later one."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self._times: list[float] = []
        self.first: list[float] = []
        self.later: list[float] = []

    def begin(self) -> None:
        """Start the clock of an answer."""
        synchronize()
        self._times = [self._clock()]

    def put(self, value: Tensor) -> None:
        """Note the prompt, which comes first, or a token."""
        self._times.append(self._clock())

    def end(self) -> None:
        """Keep what the answer took."""
        began, _, *tokens = self._times
        self.first.append(tokens[0] - began)
        self.later.append((tokens[-1] - tokens[0]) / (len(tokens) - 1))

    def forget(self) -> None:
        """Drop what was kept."""
        self.first.clear()
        self.later.clear()


def _answering(
    model: PeftModel, prompts: Sequence[Tensor], new_tokens: int, marks: _Marks, progress: Progress
) -> Callable[[int], None]:
    def step(number: int) -> None:
        prompt = prompts[number % len(prompts)]
        marks.begin()
        with torch.no_grad():
            model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                use_cache=True,
                streamer=marks,
            )
        progress.advance()

    return step


def _prompt(model: PeftModel, batch: Mapping[str, Any], new_tokens: int) -> Tensor:
    """Return (1, width) tokens: what stands before the first label of the batch's first row, or the first half of the row."""
    row = batch["input_ids"][0][batch["attention_mask"][0].bool()]
    learned = (batch["labels"][0][: len(row)] != IGNORED).nonzero()
    start = int(learned[0]) if len(learned) else 0
    room = getattr(model.get_base_model().config.get_text_config(), "max_position_embeddings", None)
    room = len(row) if room is None else room - new_tokens
    if room < 1:
        raise DataError(f"The model's positions do not hold {new_tokens} new tokens. Give fewer with `--new-tokens`.")
    prompt = row[: start if start > 1 else max(1, len(row) // 2)][-room:]
    return prompt[None].to(model.device)
