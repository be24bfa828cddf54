"""`PrefixCache`: from the second time that an example is seen, its hidden states at the entry come from a
cache.

Enter it inside a `GradientEntry`, when training begins. A forward pass then computes the prefix of the rows
that are not cached, keeps them, and runs the model's own forward from the entry up. Calls that cannot be
answered exactly (embeddings passed in, generation, images) run as they would without it. The first cached
batch is computed both ways, up to the last hidden state, and compared; where they differ the cache is
switched off with a warning.

Where the entry rises, the cache of the new one is made with what the old one held (`hand_over`): those states are rolled
forward, example by example, through the layers between. The first batch with such states is compared in the same way.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from layercard.anatomy.layers import LayerStack
from layercard.errors import PlacementError
from layercard.prefix import checks
from layercard.prefix.calls import BackboneCall
from layercard.prefix.earlier import EarlierStates
from layercard.prefix.fingerprint import change_signs, digest, prefix_parameters
from layercard.prefix.keys import Example
from layercard.prefix.obstacles import find_backbone, find_prefix_obstacle
from layercard.prefix.serving import Served, serve
from layercard.prefix.skipping import PrefixSwitch
from layercard.prefix.store import ActivationStore

__all__ = ["PrefixCache", "PrefixCacheUse", "find_prefix_obstacle"]

log = logging.getLogger("layercard")


@dataclass(frozen=True)
class PrefixCacheUse:
    """What a cache did: examples read from it, rolled forward from an earlier entry and computed from the bottom up, bytes that
    it holds, and why it stopped, if it did."""

    hits: int
    rolled: int
    misses: int
    bytes_in_memory: int
    bytes_on_disk: int
    bypassed: dict[str, int]
    off: str | None


class PrefixCache:
    """Context manager in which the hidden states at layer `entry` are computed once an example.

    `limit_bytes` bounds the memory; what is beyond goes to files in `directory` (a new temporary one where
    None), and what the disk cannot take is computed every time. Files that a killed run left in `directory`
    are used again where they are whole and of the same prefix; on exit all are removed, and the
    directory if it is empty then. Each rank needs a directory of its own. `earlier` is what the cache of a lower
    entry handed over; it counts against the limit.

    Raises `PlacementError` on entering where `find_prefix_obstacle` finds one.
    """

    def __init__(
        self,
        model: nn.Module,
        stack: LayerStack,
        entry: int,
        limit_bytes: int,
        directory: Path | None = None,
        *,
        earlier: EarlierStates | None = None,
    ) -> None:
        self._model, self._stack, self._entry = model, stack, entry
        self._limit, self._directory = limit_bytes, directory
        self._earlier = earlier or EarlierStates()
        self._undo = ExitStack()
        self._busy = self._paused = self._handed_over = False
        self._proved: set[str] = set()
        self._separates: dict[bool, bool] = {}
        self._counts: Counter[str] = Counter()
        self._bypassed: Counter[str] = Counter()
        self._off: str | None = None

    def __enter__(self) -> PrefixCache:
        obstacle = find_prefix_obstacle(self._model, self._stack, self._entry)
        if obstacle is not None:
            raise PlacementError(
                f"The prefix below layer {self._entry} cannot be cached: {obstacle} Train with `prefix_cache: off`."
            )
        self._handed_over = False
        self._backbone = find_backbone(self._model, self._stack)
        self._parameters = prefix_parameters(self._backbone, self._stack, self._entry)
        self._identity = digest(self._backbone, self._parameters, self._entry)
        self._signs = change_signs(self._parameters.values())
        self._shift = checks.only_rotary(self._backbone, self._stack)
        with ExitStack() as undo:
            self._store = self._open_store(undo)
            self._switch = undo.enter_context(PrefixSwitch(self._backbone, self._stack, self._entry))
            with checks.training_mode(self._backbone):  # bitsandbytes repacks 4-bit weights in evaluation
                self._switch.compute(checks.one_token(self._backbone))  # learns what the prefix layers return
            before = self._backbone.register_forward_pre_hook(self._before, with_kwargs=True)
            undo.callback(before.remove)
            undo.callback(self._backbone.register_forward_hook(self._after, always_call=True).remove)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def pause(self) -> None:
        """Run the prefix in every call from now on; what is cached stays."""
        self._paused = True

    def resume(self) -> None:
        """Use and fill the cache again."""
        self._paused = False

    def hand_over(self) -> EarlierStates:
        """Give away what is held, for the cache of a higher entry; leave this one then, without another pass.

        Nothing is given where the cache is off or its prefix has changed. Whoever makes no cache with it closes it.
        """
        if self._off is not None:
            return EarlierStates()
        self._forget_changed_prefix()
        self._handed_over = True
        return EarlierStates([(self._entry, self._store), *self._earlier.stores])

    @property
    def use(self) -> PrefixCacheUse:
        """What the cache did since it was made, or since `count_anew`."""
        return PrefixCacheUse(
            hits=self._counts["hit"],
            rolled=self._counts["rolled"],
            misses=self._counts["miss"],
            bytes_in_memory=self._store.bytes_in_memory + self._earlier.bytes_in_memory,
            bytes_on_disk=self._store.bytes_on_disk + self._earlier.bytes_on_disk,
            bypassed=dict(self._bypassed),
            off=self._off,
        )

    @property
    def examples_served(self) -> tuple[int, int]:
        """How many examples were read from the cache, and how many were served in all."""
        return self._counts["hit"], self._counts.total()

    def count_anew(self) -> None:
        """Begin to count what the cache does; what is cached stays."""
        self._counts.clear()
        self._bypassed.clear()

    def _open_store(self, undo: ExitStack) -> ActivationStore:
        directory = self._directory or Path(tempfile.mkdtemp(prefix="layercard-prefix-"))
        store = ActivationStore(self._limit, directory, self._identity, beside=self._earlier.beside)
        store.leave_nothing()
        undo.callback(self._close)
        return store

    def _close(self) -> None:
        if not self._handed_over:
            self._store.close()
            self._earlier.close()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run before the backbone: hand it the hidden states of its rows, computing those that are not cached."""
        if self._busy or self._paused or self._off is not None:
            return
        call = BackboneCall(self._backbone, args, kwargs)
        reason = call.why_not()
        if reason is not None:
            self._bypassed[reason] += 1
            return
        self._busy = True
        try:
            self._forget_changed_prefix()
            hidden = self._hidden(call)
        finally:
            self._busy = False
        self._switch.give(hidden)

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self._busy:
            self._switch.give(None)

    def _hidden(self, call: BackboneCall) -> Tensor | None:
        """Return the hidden states at the entry (batch, tokens, width), or None where the cache had to be switched off."""
        served = serve(call, self._examples(call), self._switch, self._store, self._earlier)
        self._counts.update(hit=len(served.found), rolled=len(served.rolled), miss=len(served.missing))
        if self._switch.side_channel is not None:
            self._switch_off(self._switch.side_channel)
        else:
            self._prove(call, served)
        return served.hidden if self._off is None else None

    def _examples(self, call: BackboneCall) -> list[Example]:
        tokens = call.tokens()
        return tokens.examples(
            split_documents=tokens.restarts() and self._separates_documents(call),
            shift_positions=self._shift,
            context=str(checks.precision(tokens.input_ids.device)).encode(),
        )

    def _separates_documents(self, call: BackboneCall) -> bool:
        masked = call.tokens().attention_mask is not None
        if masked not in self._separates:
            self._separates[masked] = checks.separates_documents(self._switch, call)
        return self._separates[masked]

    def _prove(self, call: BackboneCall, served: Served) -> None:
        """Compare the first states that were cached, and the first that were rolled, with computed ones."""
        kinds = {"cached": served.found, "rolled": served.rolled}
        for kind, examples in kinds.items():
            if examples and kind not in self._proved and self._off is None:
                self._proved.add(kind)
                difference = checks.difference_both_ways(self._backbone, self._switch, call, served.hidden, examples)
                if difference > checks.TOLERANCE[served.hidden.dtype]:
                    self._switch_off(f"{kind} and computed hidden states differ by {difference:.1e} of their norm")

    def _switch_off(self, reason: str) -> None:
        self._off = reason
        self._store.clear()
        self._earlier.clear()
        log.warning("The prefix cache is switched off: %s. Training goes on and computes the prefix.", reason)

    def _forget_changed_prefix(self) -> None:
        """Start anew where the weights of the prefix were changed since."""
        signs = change_signs(self._parameters.values())
        if signs == self._signs:
            return
        self._parameters = prefix_parameters(self._backbone, self._stack, self._entry)
        self._signs = change_signs(self._parameters.values())
        identity = digest(self._backbone, self._parameters, self._entry)
        if identity != self._identity:
            log.warning("The weights below layer %d were changed; the prefix cache starts anew.", self._entry)
            self._identity = identity
            self._proved.clear()
            self._store.restart(identity)
            self._earlier.clear()  # where in the prefix it changed is not known
