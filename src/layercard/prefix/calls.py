"""Reads a call of the backbone: which rows and documents it holds, and whether they can come from a cache."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from layercard.prefix.keys import TokenInputs

PER_TOKEN = ("input_ids", "attention_mask", "position_ids", "token_type_ids")
"""Arguments of shape (batch, tokens) that an example's key covers."""
PER_CALL = {"use_cache", "return_dict", "cache_position", "num_items_in_batch", "labels", "logits_to_keep"}
"""Arguments that hidden states do not depend on."""
KEYS_AND_VALUES = {"cache", "past_key_values"}
"""What models call the cache of keys and values, since transformers 5.24 and before."""
DOCUMENT_BOUNDS = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"}
"""Arguments that repeat what the positions of one packed row say."""


class BackboneCall:
    """One call of the backbone, its arguments by name."""

    def __init__(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        named = dict(inspect.signature(backbone.forward).bind(*args, **kwargs).arguments)
        named.update(named.pop("kwargs", {}))
        self.named = {name: value for name, value in named.items() if value is not None and value is not False}
        self._given = named
        self._backbone: Any = backbone

    def why_not(self) -> str | None:
        """Return why this call cannot be answered from the cache, or None where it can."""
        ids = self.named.get("input_ids")
        if not isinstance(ids, Tensor) or ids.dim() != 2:
            return "it is not called with token ids"
        if self._makes_key_value_cache():
            return "keys and values are kept for generation"
        rows = len(ids)
        allowed = {*PER_TOKEN, *PER_CALL, *(DOCUMENT_BOUNDS if rows == 1 else ())}
        foreign = sorted(set(self.named) - allowed)
        if foreign:
            return f"it is called with `{foreign[0]}`"
        odd = [n for n in PER_TOKEN if n in self.named and not _per_token(self.named[n], ids)]
        return f"`{odd[0]}` is not one number a token" if odd else None

    def tokens(self) -> TokenInputs:
        """Return the inputs that hidden states depend on."""
        return TokenInputs(**{name: self.named[name] for name in PER_TOKEN if name in self.named})

    def rows(self, rows: list[int]) -> dict[str, Any]:
        """Return the arguments of a call with these rows alone, in the same width."""
        batch = len(self.named["input_ids"])
        call = dict(self._given)
        if len(rows) == batch:
            return call
        index = torch.tensor(rows, device=self.named["input_ids"].device)
        for name in PER_TOKEN:
            if name in self.named and len(self.named[name]) == batch:
                call[name] = self.named[name].index_select(0, index)
        return call

    def with_other_tokens(self, where: Tensor) -> dict[str, Any]:
        """Return the arguments with another token wherever `where` (batch, tokens) is true."""
        ids = self.named["input_ids"]
        vocabulary = self._backbone.get_input_embeddings().num_embeddings
        return {**self._given, "input_ids": torch.where(where, (ids + 1) % vocabulary, ids)}

    def _makes_key_value_cache(self) -> bool:
        """In training nobody reads them; in evaluation they may be those of a prompt."""
        if KEYS_AND_VALUES & self.named.keys():
            return True
        asked = self._given.get("use_cache")
        configured = self._backbone.config.to_dict().get("use_cache", False)
        return not self._backbone.training and bool(configured if asked is None else asked)


def _per_token(values: Any, ids: Tensor) -> bool:
    return isinstance(values, Tensor) and values.dim() == 2 and values.shape[1] == ids.shape[1]
