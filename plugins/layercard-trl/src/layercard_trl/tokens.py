"""The tokens that TRL's `SFTTrainer` trains on, made by its own preparation of a dataset, for commands that have no trainer."""

from __future__ import annotations

from typing import Any

from layercard.errors import DataError
from layercard_trl import compat


def prepared(tokenizer: Any, examples: list[dict[str, Any]]) -> list[dict[str, list[int]]]:
    """Return `input_ids` and `labels` of each example, uncut.

    Examples go through a `datasets.Dataset` as they would from a JSON file, which gives nested fields that only some rows
    have the value None. Those with the same parts share one, since a part that a row lacks is no null there.
    Raises `DataError` where they do not fit one table, and what the chat template raises.
    """
    found: list[dict[str, list[int]] | None] = [None] * len(examples)
    for parts in dict.fromkeys(frozenset(example) for example in examples):
        indices = [i for i, example in enumerate(examples) if frozenset(example) == parts]
        for i, tokens in zip(indices, _together(tokenizer, [examples[i] for i in indices]), strict=True):
            found[i] = tokens
    return [tokens for tokens in found if tokens is not None]


def _together(tokenizer: Any, examples: list[dict[str, Any]]) -> list[dict[str, list[int]]]:
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset

    try:
        dataset = Dataset.from_list(examples, on_mixed_types="use_json")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(
            f"The examples do not fit one table, so `datasets` cannot hold them for TRL: {reason}. Give every row values of "
            "the same type."
        ) from None
    return compat.sft_tokens(tokenizer, dataset)
