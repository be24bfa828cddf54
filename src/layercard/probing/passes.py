"""`Passes`: a probe's batches, run one after another, whole or in parts, into sums.

A batch goes in parts where it does not fit into memory, where a target's input is not laid out by example, and where the
loss is none whose terms can be counted. Knows of a loss, not of trainers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from layercard.anatomy.layers import LayerStack
from layercard.anatomy.targets import TargetModule, initial_a
from layercard.errors import (
    BrokenLossError,
    LayercardError,
    ModelError,
    NothingToLearnError,
    ProbeError,
    TooFewExamplesError,
)
from layercard.probing.accumulators import BatchSums, RunSums
from layercard.probing.cutting import as_padded, halves, one_at_a_time
from layercard.probing.documents import Documents
from layercard.probing.faults import FAILURES, check_parts, failure, no_dependence, what_was_missed
from layercard.probing.labels import Reading, bare
from layercard.probing.observers import NotPerExample
from layercard.probing.padding import NOTE as PADDED
from layercard.probing.padding import reads_padding
from layercard.probing.reading import read_documents
from layercard.probing.sampling import cka_offset, sampled_tokens, share_to_sample
from layercard.probing.separation import NOTE, attends_across
from layercard.probing.sketch import SKETCH_WIDTH
from layercard.probing.statistics import BACKWARD, Need
from layercard.probing.streams import stream_of
from layercard.probing.trace import Trace

Loss: TypeAlias = Callable[[nn.Module, Mapping[str, Any]], Tensor]
Part: TypeAlias = tuple[Mapping[str, Any], bool]
"""A batch, and whether it is one example cut out of another batch."""
FEWEST_EXAMPLES = 2
SINGLY = "examples were run one at a time, since the loss is none whose terms layercard can count"
OPEN = "every position of the layers' input counts, padding of sound or images among them"


class Passes:
    """The forward and backward passes of one probe over its batches, and the sums of what they gave."""

    def __init__(
        self,
        model: nn.Module,
        stack: LayerStack,
        targets: Sequence[TargetModule],
        needs: frozenset[Need],
        loss: Loss,
        reading: Reading,
        batches: list[dict[str, Any]],
        rank: int,
        seed: int,
        *,
        divides: bool = True,
    ) -> None:
        self.divides = divides  # whether this process may run a batch that does not fit in parts, whatever others do
        self.stack = stack
        self.model, self.loss, self.needs, self.seed = model, loss, needs, seed
        self.names = tuple(sorted({t.name for t in targets}))
        self.device = _only_device(stack)
        projections = [initial_a(t, rank, seed).to(self.device) for t in targets]
        self.reading, self.stream = reading, stream_of(model, stack)
        self.trace = Trace(stack, targets, projections, self.names, needs, apart=self.stream == "apart")
        self.sums = RunSums(len(stack), len(self.names))
        self.singly = reading.kind == "unknown"
        self.notes: list[str] = [SINGLY] if self.singly else []
        self.tried_separation = self.tried_parts = self.tried_padding = False
        self.scale = 2.0**16  # of the loss, where activations are fp16; a power of two loses no digit
        read = [self._read(batch)[1] for batch in batches]
        if any(documents.is_open for documents in read):
            self.notes.append(OPEN)
        self.offset = cka_offset(read) if "representations" in needs else 0
        self.sample_share = share_to_sample(read) if "covariance" in needs else 0.0
        self._refuse_too_few(sum(map(len, read)), len(batches))

    def _refuse_too_few(self, documents: int, batches: int) -> None:
        fewest = 4 if "representations" in self.needs else FEWEST_EXAMPLES
        if batches == 0:
            raise NothingToLearnError(
                "The dataset is empty: there is nothing to probe. Give at least a few training examples."
            )
        if documents == 0:
            raise NothingToLearnError(
                "Every label of every probe example is masked (-100), so there is no loss to probe. Check the labels: a "
                "prompt longer than `max_length` (Axolotl: `sequence_len`) leaves no completion, and a chat template may mark no "
                "assistant turn."
            )
        if documents < fewest:
            raise TooFewExamplesError(
                f"The probe found {documents} example(s) with a label. Scores need at least {fewest} to mean anything; "
                "32 is the default of `probe_examples`. Give more data, or choose layers by hand with `lora_layers: [...]`."
            )

    def _read(self, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], Documents]:
        return read_documents(inputs, self.reading, self.stream)

    def take(self, inputs: Mapping[str, Any]) -> None:
        """Probe one batch, in smaller parts where it does not fit or is not laid out by example."""
        queue: list[Part] = [(inputs, False)]
        while queue:
            part, alone = queue.pop(0)
            batch, documents = self._read(_on(part, self.device))
            if len(documents) == 0:
                continue
            self._note_separation(batch, documents)
            self._note_padding(batch, documents)
            self._check_parts(batch, documents)
            if not alone and (self._goes_singly(documents) or (documents.rows == 1 and not documents.packed)):
                queue[:0] = _singles(batch, documents)
                continue
            try:
                self._measure(batch, documents)
            except NotPerExample:
                queue[:0] = self._apart(batch, documents, alone)
            except torch.OutOfMemoryError:
                queue[:0] = self._smaller(batch, documents, alone)

    def _goes_singly(self, documents: Documents) -> bool:
        """Answers are looked for among all positions of a row, padding included, so padded rows are run without it."""
        return self.singly or (self.reading.kind == "answer" and not documents.is_full)

    def _note_separation(self, batch: dict[str, Any], documents: Documents) -> None:
        """Try once, on the first packed batch, whether attention keeps documents apart."""
        if self.tried_separation or not documents.packed:
            return
        self.tried_separation = True
        last = self.trace.layers[-1]
        if attends_across(last, self._scalar, batch, documents):
            self.notes.append(NOTE)

    def _note_padding(self, batch: dict[str, Any], documents: Documents) -> None:
        """Try once, on the first padded batch, whether padding is read; behind a text that is read causally nothing can."""
        causal = self.reading.shifted and not hasattr(bare(self.model).config, "vision_config")
        if self.tried_padding or documents.is_full or self.singly or causal or self.stream != "source":
            return
        self.tried_padding = True
        if reads_padding(self.trace.layers[-1], self._scalar, batch, documents):
            self.singly = True
            self.notes.append(PADDED)

    def _check_parts(self, batch: dict[str, Any], documents: Documents) -> None:
        """Try once whether a loss that is not known is made of those of its examples; raise `ProbeError` where not."""
        if self.tried_parts or self.reading.kind != "unknown" or len(documents) < 2:
            return
        self.tried_parts = True
        with torch.no_grad():
            whole = self._scalar(batch)
            parts = [self._scalar(single) for single in as_padded(batch, documents)]
        check_parts(whole, parts)

    def _apart(self, batch: dict[str, Any], documents: Documents, alone: bool) -> list[Part]:
        if alone:
            raise ProbeError(
                f"A target module of {type(self.model).__name__} reads an input that cannot be told apart by example. Leave "
                "it out of `target_modules`, or choose layers by depth."
            )
        self.singly = True
        return _singles(batch, documents)

    def _smaller(self, batch: dict[str, Any], documents: Documents, alone: bool) -> list[Part]:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not self.divides:
            raise ProbeError(
                f"A batch of {documents.rows} rows of {documents.width} tokens does not fit in the memory of {self.device}, and "
                "a sharded model cannot run it in parts on one rank alone. Probe smaller batches (`probe_batch_size`), turn on "
                "gradient checkpointing, or shorten the examples (`max_length`; Axolotl: `sequence_len`)."
            )
        if alone:
            raise ProbeError(
                f"One example of {documents.width} tokens does not fit in the memory of {self.device}. Turn on gradient "
                "checkpointing, load the base model in 4-bit, or shorten the examples (`max_length`; Axolotl: `sequence_len`)."
            )
        if documents.rows > 1:
            return [(half, False) for half in halves(batch, documents)]
        return _singles(batch, documents)

    def _measure(self, batch: dict[str, Any], documents: Documents) -> None:
        total = documents.terms.sum()
        while True:
            width = SKETCH_WIDTH if self.trace.wants("gradient_gram") else 0
            sums = BatchSums.empty(
                len(self.trace.layers), len(self.names), len(documents), self.device, sketch_width=width
            )
            self.trace.begin(documents, sums, self.offset, self._sample)
            loss = self._loss(batch)
            scale = self.scale if self.trace.half else 1.0
            weights = total / documents.terms / scale
            self.trace.end_of_forward(weights)
            if self.trace.backward:
                (loss * scale).backward()
                self.trace.end_of_backward()
            if bool(sums.squares.isfinite().all()):
                return self.sums.add(sums, self.trace.documents, weights)
            self._lower_scale()

    def _sample(self, documents: Documents) -> Tensor | None:
        return sampled_tokens(documents, self.sample_share, self.seed)

    def _scalar(self, batch: dict[str, Any]) -> Tensor:
        """Return the loss; what the model or a user's own loss raises becomes a `ProbeError`."""
        try:
            loss = self.loss(self.model, batch)
        except (LayercardError, torch.OutOfMemoryError):
            raise
        except FAILURES as error:
            raise ProbeError(failure(batch, error)) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ProbeError(
                f"The loss of a probe batch is {type(loss).__name__} {list(getattr(loss, 'shape', ()))}, and the probe needs one "
                "number with a gradient. Return a scalar tensor from the loss, or choose layers by depth or by hand."
            )
        return loss.reshape(())

    def _loss(self, batch: dict[str, Any]) -> Tensor:
        with torch.set_grad_enabled(self.trace.backward):
            loss = self._scalar(batch)
        if not bool(loss.isfinite()):
            raise BrokenLossError(
                f"The loss of the base model on a probe batch is {loss.item()}. Training would start from there too: check "
                "the data, the dtype (fp16 overflows where bf16 does not) and the checkpoint."
            )
        if self.trace.backward and not loss.requires_grad:
            raise ProbeError(no_dependence(self.stack))
        return loss

    def _lower_scale(self) -> None:
        if self.scale <= 1.0 or not self.trace.half:
            raise ProbeError(
                "The gradients of a probe batch are not finite although its loss is. Load the base model in bf16 or float32."
            )
        self.scale /= 2.0**4

    def check(self) -> None:
        """Raise `ProbeError` where hooks on targets never fired or no gradient reached a layer; note what did not run."""
        if not self.sums.examples or not self.needs & (BACKWARD | {"energy"}):
            return
        ran, reached = self.trace.ran_and_reached()
        if not ran:
            raise ProbeError(
                "No target module ran during the probe. Kernels that bypass the modules must be off while probing."
            )
        self.notes += what_was_missed(self.stack, self.trace.targets, ran, reached if self.trace.backward else ran)


def _singles(batch: dict[str, Any], documents: Documents) -> list[Part]:
    return [(single, True) for single in one_at_a_time(batch, documents)]


def _only_device(stack: LayerStack) -> torch.device:
    devices = sorted({str(p.device) for layer in stack.layers for p in layer.parameters()})
    if len(devices) > 1:
        raise ModelError(
            f"The layers are spread over {', '.join(devices)} (`meta` holds what was offloaded). The probe runs on one device. "
            "Load the model on one (in 4-bit where it does not fit), or choose layers by depth or by hand, which needs no probe."
        )
    return torch.device(devices[0])


def _on(inputs: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
