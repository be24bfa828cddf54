"""How many tokens of an example a model can really read.

Tables of positions are looked up in the model itself: RoBERTa and its kin count positions from behind the padding index,
OPT and BART from an offset, others from 0, and rotary or relative positions have no table. What the configuration and the
tokenizer declare bounds the default; a table bounds what may be asked for.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from layercard.errors import SettingsError

DEFAULT = 1024
"""Tokens an example at most, where nobody says."""
UNSAID = 10**9
"""Tokenizers without a limit of their own have a far larger number for it."""
TABLE = re.compile(r"(^|_)(pos|position|positions|wpe)(_|$)")
OTHER_SENSES = ("vision", "visual", "image", "audio", "speech")
"""Towers whose positions are not those of text."""


def longest_input(model: nn.Module, tokenizer: Any = None, *, wanted: int | None = None) -> int:
    """Return how many tokens of an example are read: `wanted`, or by default 1024, or fewer where the model has fewer.

    `model` is a transformers model, with or without weights. Raises `SettingsError` where more is wanted than it can read.
    """
    table, declared = _table_limit(model), _declared(model)
    if wanted is not None:
        most = wanted if table is None else min(table, declared or table)
        if wanted > most:
            raise SettingsError(
                f"`max_length` is {wanted}, and {type(model).__name__} has positions for {most} tokens. Give at most {most}."
            )
        return wanted
    limits = [DEFAULT, table, declared, _of_tokenizer(tokenizer)]
    return min(limit for limit in limits if limit is not None)


def _table_limit(model: nn.Module) -> int | None:
    """Return the fewest positions of its text tables, None where it has none."""
    found = [
        _usable(module)
        for name, module in model.named_modules()
        if TABLE.search(name.rpartition(".")[2]) and not any(sense in name for sense in OTHER_SENSES)
    ]
    return min((rows for rows in found if rows is not None), default=None)


def _usable(module: nn.Module) -> int | None:
    """Return the positions of one table, None where the module holds none."""
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() != 2 or isinstance(module, nn.Linear):
        return None
    offset = vars(module).get("offset", 0)  # OPT's and BART's
    behind = vars(module).get("padding_idx")
    sinusoidal = "Sinusoidal" in type(module).__name__  # counts from 0, whatever its padding index
    return int(weight.shape[0]) - (offset or (0 if behind is None or sinusoidal else behind + 1))


def _declared(model: Any) -> int | None:
    text = model.config.get_text_config()
    # each family has its own name for it; transformers maps most of them to the first
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        limit = getattr(text, name, None)
        if isinstance(limit, int) and limit > 0 and not _relative(text, name):
            return limit
    return None


def _relative(text: Any, name: str) -> bool:
    """T5 and its kin keep a number of positions that nothing in the model reads."""
    return name == "n_positions" and hasattr(text, "relative_attention_num_buckets")


def _of_tokenizer(tokenizer: Any) -> int | None:
    if tokenizer is None:
        return None
    from layercard.data.chat import text_tokenizer

    limit = text_tokenizer(tokenizer).model_max_length
    return int(limit) if 0 < limit < UNSAID else None
