"""`run_probe`: one forward and backward of the frozen model over the probe examples, every statistic in one pass.

Offers `run_probe`. Knows of batches and a loss, not of trainers. Cost: the forward and the backward through activations
of one pass; no weight gradient is formed. Memory: that of a training step with the same checkpointing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from layercard.anatomy.layers import LayerStack
from layercard.anatomy.targets import TargetModule, find_targets, initial_a, weights_out_of_reach
from layercard.errors import BrokenLossError, ModelError, NothingToLearnError, ProbeError, TooFewExamplesError
from layercard.probing.accumulators import BatchSums, RunSums
from layercard.probing.as_found import as_found
from layercard.probing.documents import Documents, halves, one_at_a_time, read_documents
from layercard.probing.finish import finish
from layercard.probing.observers import NotPerExample
from layercard.probing.progress import Progress
from layercard.probing.sampling import cka_offset, sampled_tokens, share_to_sample
from layercard.probing.separation import NOTE, attends_across
from layercard.probing.statistics import LayerStatistics, Need
from layercard.probing.trace import Trace

Loss = Callable[[nn.Module, Mapping[str, Any]], Tensor]
FEWEST_EXAMPLES = 2


def run_probe(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    stack: LayerStack,
    needs: Iterable[Need],
    loss: Loss | None = None,
    target_modules: Sequence[str] | None = None,
    rank: int = 8,
    seed: int = 0,
    checkpointing: bool | None = None,
    show_progress: bool = True,
) -> LayerStatistics:
    """Return what `needs` asks for, measured over `batches`.

    Parameters: `batches` are collated training batches (`input_ids` (rows, width), `labels`, …), on any device; `loss`
    returns the loss averaged over the batch's label terms, by default the model's own; `rank` and `seed` give A where the
    model has no adapters. Under torch.distributed the batches, the same on every rank, are shared out and the sums
    reduced. The model is left exactly as found, also when this fails.
    Raises `DataError` (nothing to learn from), `ProbeError` (numbers that cannot be used), `ModelError`.
    """
    began = time.perf_counter()
    held = [dict(batch) for batch in batches]
    targets = find_targets(model, stack, names=target_modules)
    run = _Run(model, stack, targets, frozenset(needs), loss or own_loss, held, rank, seed)
    with as_found(model, stack, checkpointing=checkpointing), run.trace:
        for batch in Progress("probing", show=show_progress).over(_share(held)):
            run.take(batch)
    if _ranks() > 1:
        run.sums.reduce(run.device)
    run.check()
    return finish(
        run.sums, run.names, model=type(model).__name__, needs=run.needs, offset=run.offset, notes=run.notes,
        left_out=weights_out_of_reach(stack), seconds=time.perf_counter() - began,
        with_targets=tuple(sorted({target.layer for target in targets})),
    )  # fmt: skip


def own_loss(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Return the model's own loss, averaged over label terms."""
    loss = model(**inputs).loss
    if not isinstance(loss, Tensor):
        raise ProbeError(
            f"{type(model).__name__} returned no loss for a batch of {sorted(inputs)}. The probe needs a model with a "
            "training head and batches with `labels`; pass `loss` for another objective."
        )
    return loss


def is_shifted(model: nn.Module) -> bool:
    """Whether position t predicts the label at t + 1: causal language models do, encoders' heads do not."""
    from peft import PeftModel

    kind = type(model.get_base_model() if isinstance(model, PeftModel) else model).__name__
    unshifted = ("ForMaskedLM", "ForTokenClassification", "ForSequenceClassification", "ForQuestionAnswering")
    return not kind.endswith(unshifted)


def _ranks() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def _share(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return batches[torch.distributed.get_rank() :: _ranks()] if _ranks() > 1 else batches


class _Run:
    """One probe under way."""

    def __init__(
        self,
        model: nn.Module,
        stack: LayerStack,
        targets: Sequence[TargetModule],
        needs: frozenset[Need],
        loss: Loss,
        batches: list[dict[str, Any]],
        rank: int,
        seed: int,
    ) -> None:
        self.model, self.loss, self.needs, self.seed = model, loss, needs, seed
        self.names = tuple(sorted({t.name for t in targets}))
        self.device = _only_device(stack)
        projections = [initial_a(t, rank, seed).to(next(t.module.parameters()).device) for t in targets]
        self.trace = Trace(stack, targets, projections, self.names, needs)
        self.sums = RunSums(len(stack), len(self.names))
        self.shifted = is_shifted(model)
        self.notes: list[str] = []
        self.singly = self.tried_separation = False
        self.scale = 2.0**16  # of the loss, where activations are fp16; a power of two loses no digit
        read = [read_documents(batch, shifted=self.shifted) for batch in batches]
        self.offset = cka_offset(read) if "representations" in needs else 0
        self.sample_share = share_to_sample(read) if "covariance" in needs else 0.0
        self._refuse_too_few(sum(len(documents) for _, documents in read), len(batches))

    def _refuse_too_few(self, documents: int, batches: int) -> None:
        fewest = 4 if "representations" in self.needs else FEWEST_EXAMPLES
        if batches == 0:
            raise NothingToLearnError(
                "The dataset is empty: there is nothing to probe. Give at least a few training examples."
            )
        if documents == 0:
            raise NothingToLearnError(
                "Every label of every probe example is masked (-100), so there is no loss to probe. Check the labels: a "
                "prompt longer than `max_length` leaves no completion, and a chat template may mark no assistant turn."
            )
        if documents < fewest:
            raise TooFewExamplesError(
                f"The probe found {documents} example(s) with a label. Scores need at least {fewest} to mean anything; "
                "32 is the default of `probe_examples`. Give more data, or choose layers by hand with `lora_layers: [...]`."
            )

    def take(self, inputs: Mapping[str, Any]) -> None:
        """Probe one batch, in smaller parts where it does not fit or is not laid out by example."""
        queue: list[Mapping[str, Any]] = [inputs]
        while queue:
            part = queue.pop(0)
            batch, documents = read_documents(_on(part, self.device), shifted=self.shifted)
            alone = len(documents) == 1 and documents.rows == 1 and documents.is_full
            if len(documents) == 0:
                continue
            self._note_separation(batch, documents)
            if not alone and (self.singly or (documents.rows == 1 and not documents.packed)):
                queue[:0] = one_at_a_time(batch, documents)
                continue
            try:
                self._measure(batch, documents)
            except NotPerExample:
                queue[:0] = self._apart(batch, documents, alone)
            except torch.OutOfMemoryError:
                queue[:0] = self._smaller(batch, documents, alone)

    def _note_separation(self, batch: dict[str, Any], documents: Documents) -> None:
        """Try once, on the first packed batch, whether attention keeps documents apart."""
        if self.tried_separation or not documents.packed:
            return
        self.tried_separation = True
        last = self.trace.layers[-1]
        if attends_across(last, lambda cut: self.loss(self.model, cut), batch, documents):
            self.notes.append(NOTE)

    def _apart(self, batch: dict[str, Any], documents: Documents, alone: bool) -> list[dict[str, Any]]:
        if alone:
            raise ProbeError(
                f"A target module of {type(self.model).__name__} reads an input that cannot be told apart by example. Leave "
                "it out of `target_modules`, or choose layers by depth."
            )
        self.singly = True
        return list(one_at_a_time(batch, documents))

    def _smaller(self, batch: dict[str, Any], documents: Documents, alone: bool) -> list[dict[str, Any]]:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if alone:
            raise ProbeError(
                f"One example of {documents.width} tokens does not fit in the memory of {self.device}. Turn on gradient "
                "checkpointing, load the base model in 4-bit, or shorten the examples (`max_length`)."
            )
        return halves(batch) if documents.rows > 1 else list(one_at_a_time(batch, documents))

    def _measure(self, batch: dict[str, Any], documents: Documents) -> None:
        total = documents.terms.sum()
        while True:
            sums = BatchSums.empty(len(self.trace.layers), len(self.names), len(documents), self.device)
            self.trace.begin(
                documents, sums, self.offset, sampled_tokens(batch, documents, self.sample_share, self.seed)
            )
            loss = self._loss(batch)
            scale = self.scale if self.trace.half else 1.0
            weights = total / documents.terms / scale
            self.trace.end_of_forward(weights)
            if self.trace.backward:
                (loss * scale).backward()
                self.trace.end_of_backward()
            if bool(sums.squares.isfinite().all()):
                return self.sums.add(sums, documents, weights)
            self._lower_scale()

    def _loss(self, batch: dict[str, Any]) -> Tensor:
        with torch.set_grad_enabled(self.trace.backward):
            loss = self.loss(self.model, batch)
        if not bool(loss.isfinite()):
            raise BrokenLossError(
                f"The loss of the base model on a probe batch is {loss.item()}. Training would start from there too: check "
                "the data, the dtype (fp16 overflows where bf16 does not) and the checkpoint."
            )
        if self.trace.backward and not loss.requires_grad:
            raise ProbeError(
                "The loss does not depend on any target module that the probe can see. Kernels that bypass the modules "
                "(fused LoRA kernels) must be off while probing."
            )
        return loss

    def _lower_scale(self) -> None:
        if self.scale <= 1.0 or not self.trace.half:
            raise ProbeError(
                "The gradients of a probe batch are not finite although its loss is. Load the base model in bf16 or float32."
            )
        self.scale /= 2.0**4

    def check(self) -> None:
        """Raise `ProbeError` where this rank had examples and the hooks on targets never fired."""
        if self.needs & {"gradients", "mean_gradient", "energy"} and self.sums.examples and not self.trace.fired:
            raise ProbeError(
                "No target module ran during the probe. Kernels that bypass the modules must be off while probing."
            )


def _only_device(stack: LayerStack) -> torch.device:
    devices = sorted({str(p.device) for layer in stack.layers for p in layer.parameters()})
    if len(devices) > 1:
        raise ModelError(
            f"The layers are spread over {', '.join(devices)}. The probe runs on one device. Load the model on one (in 4-bit "
            "where it does not fit), or choose layers by depth or by hand, which needs no probe."
        )
    return torch.device(devices[0])


def _on(inputs: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
