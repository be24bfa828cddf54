"""`ControlLoss`: the loss of a run's model on its control rows, before training, in the trial and at the end.

Rows are read alone, as text from their first token on, under the trainer's autocast, without noise and without gradient.
Nothing of it is left in model or random state. Each process reads its share; all see every loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from layercard.cost.untouched import untouched
from layercard.errors import SettingsError
from layercard.pipeline.during.variants import out_of_memory
from layercard.probing.as_found import noiseless
from layercard.quality.control import ALL_LAYERS, BEFORE, END, NO_END, PLACED, ControlTexts, forgetting, read_control
from layercard.ranks import gathered

if TYPE_CHECKING:
    from layercard.hosts.protocol import Host

MOST_TOKENS = 512
OUT_OF_MEMORY = "Memory ran out over the control rows."
RESUMED = "The run was resumed, and what these rows cost before it began is not in its report.json."


class ControlLoss:
    """Judges the model of `host` on `texts`; raises `SettingsError` where the model predicts no next token."""

    def __init__(self, host: Host, texts: ControlTexts) -> None:
        self._host, self.texts = host, texts
        self.refused = why_not_judged(host.trainer)
        self._rows = _encoded(host, texts)
        self._failed: str | None = None
        self.losses: dict[str, list[float]] = {}
        """Of every row, by when they were read."""

    def judge(self, name: str) -> None:
        """Keep the losses of the model as it is under `name`."""
        if self.refused is not None:
            return
        parts = len(gathered(None))
        rank = self._host.trainer.args.process_index if parts > 1 else 0
        with torch.no_grad(), untouched(self._host.model), noiseless(self._host.model):
            own = self._read(self._rows[rank::parts])
        found = gathered(own)
        if None in found:
            self.losses.pop(name, None)
            self._failed = OUT_OF_MEMORY
        else:
            self.losses[name] = [loss for losses in found for loss in losses or ()]

    def begin(self, earlier: Mapping[str, Any] | None, *, fresh: bool) -> None:
        """Read the rows before training; where it has begun before, take what the `earlier` report says of the same rows."""
        self.losses, self._failed = {}, None
        if fresh:
            self.judge(BEFORE)
        elif earlier is not None and earlier.get("digest") == self.texts.digest:
            known = {name: earlier["loss"].get(name) for name in (BEFORE, ALL_LAYERS, PLACED)}
            self.losses = {name: [loss] for name, loss in known.items() if loss is not None}
        if not fresh and BEFORE not in self.losses:
            self._failed = RESUMED

    def drop_placed(self, *, every_layer: bool = False) -> None:
        """Drop what was found of placed layers that are not trained after all; with `every_layer` all of them are."""
        self.losses.pop(PLACED, None)
        if every_layer and ALL_LAYERS in self.losses:
            self.losses[PLACED] = self.losses[ALL_LAYERS]

    def _read(self, rows: list[torch.Tensor]) -> list[float] | None:
        """Return the loss of each row; None where memory ran out, which must not cost a training that has ended."""
        try:
            return [self._loss(row) for row in rows]
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return None

    def to_dict(self) -> dict[str, Any]:
        """Return what the report holds now."""
        reason = self.refused or self._failed or (None if END in self.losses else NO_END)
        return forgetting(self.texts, self.losses, reason=reason)

    def _loss(self, row: torch.Tensor) -> float:
        ids = row.to(self._host.device)
        with self._host.trainer.accelerator.autocast():
            logits = self._host.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        return F.cross_entropy(logits[0, :-1].float(), ids[0, 1:]).item()


def why_not_judged(trainer: Any) -> str | None:
    """Return in a sentence why control rows cannot be read in this run, or None where they can."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        kind = "FSDP" if trainer.is_fsdp_enabled else "DeepSpeed"
        return f"{kind} shards the model, which cannot read control rows outside a training step."
    if trainer.get_cp_size() * trainer.get_sp_size() * trainer.get_tp_size() > 1:
        return "The model is split over processes, so control rows cannot be read outside a training step."
    return None


def control_of(host: Host, control: str | None) -> ControlLoss | None:
    """Return what judges the rows that the setting names, None where it names none."""
    return None if control in (None, "off") else ControlLoss(host, read_control(str(control)))


def _encoded(host: Host, texts: ControlTexts) -> list[torch.Tensor]:
    _check_model(host.model)
    tokenizer = getattr(host.trainer, "processing_class", None)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if not callable(tokenizer):
        raise SettingsError(
            "`control` is given, and the trainer has no tokenizer. Give it one as `processing_class`, or drop `control`."
        )
    positions = getattr(_base(host.model).config.get_text_config(), "max_position_embeddings", None) or MOST_TOKENS
    rows = [torch.tensor([list(tokenizer(text)["input_ids"])[: min(MOST_TOKENS, positions)]]) for text in texts.texts]
    short = next((number for number, row in enumerate(rows, 1) if row.shape[1] < 2), None)
    if short is not None:
        raise SettingsError(
            f"Control row {short} is shorter than two tokens, so it has no next token. Write more words."
        )
    return rows


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _check_model(model: Any) -> None:
    from transformers.models.auto import modeling_auto as auto

    base = _base(model)
    named = (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    known = {kind.__name__ for kind in type(base).__mro__} & {
        name
        for mapping in named
        for value in mapping.values()
        for name in ((value,) if isinstance(value, str) else value)
    }
    if not known or base.config.is_encoder_decoder:
        raise SettingsError(
            f"`control` is given, and {type(base).__name__} is no causal language model. Control rows are judged by the "
            "next token, which such models alone predict. Drop `control`."
        )
