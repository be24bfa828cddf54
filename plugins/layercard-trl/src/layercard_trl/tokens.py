"""The tokens that TRL's `SFTTrainer` trains on, made by its own preparation of a dataset, for commands that have no trainer."""

from __future__ import annotations

from typing import Any

from layercard_trl import compat


def prepared(tokenizer: Any, examples: list[dict[str, Any]]) -> list[dict[str, list[int]]]:
    """Return `input_ids` and `labels` of each example, uncut.

    Examples go through a `datasets.Dataset` as they would from a JSON file, which gives nested fields that only some rows
    have the value None. Those with the same parts share one, since a part that a row lacks is no null there.
    Raises what the chat template raises, and what Arrow does where the examples fit no table.
    """
    from datasets import Dataset

    found: list[dict[str, list[int]] | None] = [None] * len(examples)
    for parts in dict.fromkeys(frozenset(example) for example in examples):
        indices = [i for i, example in enumerate(examples) if frozenset(example) == parts]
        dataset = Dataset.from_list([examples[i] for i in indices], on_mixed_types="use_json")
        for i, tokens in zip(indices, compat.sft_tokens(tokenizer, dataset), strict=True):
            found[i] = tokens
    return [tokens for tokens in found if tokens is not None]
