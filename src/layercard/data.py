"""From a dataset to tokenized examples and batches, where no trainer supplies them.

Understands the columns `messages`; `prompt` and `completion` (labels on the completion alone); `text`; and `text` with
`label` for classifiers. Labels and end-of-sequence tokens are as TRL's SFTTrainer makes them. Padding is told by
`attention_mask`, never by the pad token, which may be the EOS token. Reading files is `records.py`'s business.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from layercard.errors import DataError, SettingsError, nearest, one_of
from layercard.records import Record, sample_records

Task: TypeAlias = Literal["causal", "masked", "classification"]
Tokens: TypeAlias = dict[str, Any]
"""`input_ids`: a list of ids; `labels`: as many (-100 where nothing is learned), or one number for classifiers."""

FORMATS: dict[Task, tuple[tuple[str, ...], ...]] = {
    "causal": (("messages",), ("prompt", "completion"), ("text",)),
    "masked": (("text",),),
    "classification": (("text", "label"),),
}
IGNORED = -100
MASKED_SHARE = 0.15
"""The share of tokens to predict under `masked`, as BERT was trained."""


@dataclass(frozen=True)
class ProbeData:
    """Batches for a probe: `input_ids`, `attention_mask` (rows, width) and `labels` ((rows, width) or (rows,))."""

    batches: tuple[dict[str, Tensor], ...]
    examples: int
    skipped: int
    """Sampled examples in which nothing is left to learn, such as completions beyond `max_length`."""


def probe_data(
    source: str,
    tokenizer: Any,
    *,
    task: Task = "causal",
    examples: int = 32,
    batch_size: int = 8,
    max_length: int = 1024,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    config: str | None = None,
) -> ProbeData:
    """Return at most `examples` examples of `source`, sampled with `seed`, as batches on the CPU.

    Parameters: `tokenizer` is a transformers tokenizer; `columns` says which column plays which part, such as
    `{"prompt": "question", "completion": "answer"}`; `max_length` in tokens, longer examples lose their end.
    Raises `DataError` where the data are missing, empty, unreadable, of unknown columns, or leave nothing to learn.
    """
    records = sample_records(source, count=examples, seed=seed, split=split, config=config)
    tokens = tokenize_records(
        records, tokenizer, task=task, max_length=max_length, seed=seed, columns=columns, source=source
    )
    kept = [example for example in tokens if teaches(example, task)]
    if not kept:
        raise DataError(
            f"None of the {len(tokens)} examples sampled from {source} has a token to learn from within `max_length` "
            f"({max_length}). Give longer examples or a higher `max_length`."
        )
    groups = [kept[i : i + batch_size] for i in range(0, len(kept), batch_size)]
    return ProbeData(tuple(collate(group, pad_id(tokenizer)) for group in groups), len(kept), len(tokens) - len(kept))


def tokenize_records(
    records: Sequence[Record],
    tokenizer: Any,
    *,
    task: Task = "causal",
    max_length: int = 1024,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    source: str = "the dataset",
) -> list[Tokens]:
    """Return each record's tokens, cut after `max_length`; of which some may hold nothing to learn (`teaches`).

    Parameters: as of `probe_data`; `seed` draws the hidden tokens of a masked model; `source` is named in messages.
    Raises `DataError` where columns are missing or hold something else.
    """
    layout = _layout(records[0], task, columns or {})
    generator = random.Random(seed)
    tokens = []
    for record in records:
        parts = [_part(record, role, (columns or {}).get(role, role), source) for role in layout]
        tokens.append(_cut(_tokenized(layout, parts, tokenizer, task, generator), max_length))
    return tokens


def _layout(record: Record, task: Task, columns: Mapping[str, str]) -> tuple[str, ...]:
    """Return the parts that the columns play."""
    known = sorted({role for layout in FORMATS[task] for role in layout})
    for role, column in columns.items():
        if role not in known:
            raise SettingsError(f"`column` names the part {role!r}.{nearest(role, known)} Parts are {one_of(known)}.")
        if column not in record:
            raise DataError(f"The dataset has no column {column!r}.{nearest(column, record)} It has {one_of(record)}.")
    for layout in FORMATS[task]:
        if set(columns) <= set(layout) and all(columns.get(role, role) in record for role in layout):
            return layout
    supported = "; ".join(" and ".join(f"`{role}`" for role in layout) for layout in FORMATS[task])
    raise DataError(
        f"The dataset has the columns {one_of(record)}. A {task} model is probed on {supported}. Say which column plays "
        "which part, for example `--column prompt=question --column completion=answer`."
    )


def _part(record: Record, role: str, column: str, source: str) -> Any:
    value = record.get(column)
    if role == "label":
        if isinstance(value, str) or not isinstance(value, int | float):
            raise DataError(
                f"{source}: the label {value!r} in `{column}` is not a number. Give each class a number from 0."
            )
        return value
    conversation = isinstance(value, list) and value and all(isinstance(m, dict) and "role" in m for m in value)
    if conversation and role != "text":
        return value
    if isinstance(value, str) and role != "messages":
        return value
    wanted = "a list of messages with `role` and `content`" if role == "messages" else "a string"
    raise DataError(f"{source}: an example's `{column}` is {value!r:.60}. Every example needs {wanted} there.")


def _tokenized(
    layout: tuple[str, ...], parts: Sequence[Any], tokenizer: Any, task: Task, generator: random.Random
) -> Tokens:
    if layout == ("text", "label"):
        return {"input_ids": tokenizer(parts[0])["input_ids"], "labels": parts[1]}
    if task == "masked":
        return _masked(tokenizer(parts[0])["input_ids"], tokenizer, generator)
    if layout == ("prompt", "completion"):
        return _completion(parts[0], parts[1], tokenizer)
    if layout == ("messages",):
        ids = tokenizer(_chat(tokenizer, parts[0]), add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(_ended(parts[0], tokenizer))["input_ids"]
    return {"input_ids": ids, "labels": list(ids)}


def _completion(prompt: Any, completion: Any, tokenizer: Any) -> Tokens:
    """Label what follows the prompt."""
    if isinstance(prompt, str) != isinstance(completion, str):
        raise DataError(
            "An example's prompt is text and its completion messages, or the other way round. Give both alike."
        )
    if isinstance(prompt, str):
        before, whole, special = prompt, _ended(prompt + completion, tokenizer), True
    else:
        before = _chat(tokenizer, prompt, add_generation_prompt=True)
        whole, special = _chat(tokenizer, prompt + completion), False
    start = len(tokenizer(before, add_special_tokens=special)["input_ids"])
    ids = tokenizer(whole, add_special_tokens=special)["input_ids"]
    return {"input_ids": ids, "labels": [IGNORED] * min(start, len(ids)) + ids[start:]}


def _ended(text: str, tokenizer: Any) -> str:
    eos = tokenizer.eos_token
    return text if eos is None or text.endswith(eos) else text + eos


def _chat(tokenizer: Any, messages: list[Any], **options: Any) -> str:
    if tokenizer.chat_template is None:
        raise DataError(
            "The examples are messages, and the tokenizer has no chat template. Use the model's chat version, or examples "
            "with `text`, or with `prompt` and `completion` as strings."
        )
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return text


def _masked(ids: list[int], tokenizer: Any, generator: random.Random) -> Tokens:
    """Hide a share of the tokens, at least one, and label only those."""
    if tokenizer.mask_token_id is None:
        raise DataError(
            "The model predicts masked tokens, and its tokenizer has no mask token. Give the model's own tokenizer."
        )
    ordinary = [i for i, token in enumerate(ids) if token not in tokenizer.all_special_ids]
    hidden = set(generator.sample(ordinary, min(len(ordinary), max(1, round(MASKED_SHARE * len(ordinary))))))
    return {
        "input_ids": [tokenizer.mask_token_id if i in hidden else token for i, token in enumerate(ids)],
        "labels": [token if i in hidden else IGNORED for i, token in enumerate(ids)],
    }


def _cut(example: Tokens, max_length: int) -> Tokens:
    labels = example["labels"]
    return {
        "input_ids": example["input_ids"][:max_length],
        "labels": labels[:max_length] if isinstance(labels, list) else labels,
    }


def teaches(example: Tokens, task: Task) -> bool:
    """Whether the example holds a label to learn from."""
    if task == "classification":
        return bool(example["input_ids"])
    predicted = example["labels"][1:] if task == "causal" else example["labels"]  # nothing predicts the first token
    return any(label != IGNORED for label in predicted)


def pad_id(tokenizer: Any) -> int:
    """Return the id to pad with: the tokenizer's own, else that of the end of a sequence, else 0."""
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def collate(examples: Sequence[Tokens], pad_id: int) -> dict[str, Tensor]:
    """Return `input_ids`, `attention_mask` (rows, width) and `labels`, padded on the right to the longest example."""
    width = max(len(example["input_ids"]) for example in examples)
    mask = [[1] * len(e["input_ids"]) for e in examples]
    labels = [e["labels"] for e in examples]
    return {
        "input_ids": torch.tensor([_padded(e["input_ids"], width, pad_id) for e in examples]),
        "attention_mask": torch.tensor([_padded(row, width, 0) for row in mask]),
        "labels": torch.tensor([_padded(row, width, IGNORED) if isinstance(row, list) else row for row in labels]),
    }


def _padded(values: list[int], width: int, fill: int) -> list[int]:
    return values + [fill] * (width - len(values))
