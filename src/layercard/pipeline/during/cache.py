"""Whether a placed run caches its prefix; what that will need and gain is said before, what it did is told after."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from layercard.anatomy.checkpoint_names import is_checkpointing
from layercard.cost.predict import predict_step
from layercard.prefix.cache import PrefixCache, find_prefix_obstacle
from layercard.prefix.earlier import EarlierStates
from layercard.sizes import bytes_text, parse_prefix_cache, projected_bytes

if TYPE_CHECKING:
    from layercard.anatomy.layers import LayerStack
    from layercard.hosts.protocol import Host
    from layercard.placement.placement import LayerPlacement
    from layercard.settings import PlacementSettings

log = logging.getLogger("layercard")

BATCHES_LOOKED_AT = 4


class PrefixChoice:
    """The prefix cache of a run: `cache` is None where there is none, `obstacle` says why.

    `earlier` is what the cache of a lower entry handed over. A context manager: the cache waits inside it, until `running` is
    entered too.
    """

    def __init__(
        self,
        host: Host,
        stack: LayerStack,
        placement: LayerPlacement,
        settings: PlacementSettings,
        *,
        entry_obstacle: str | None,
        earlier: EarlierStates | None = None,
    ) -> None:
        self._host, self._placement = host, placement
        earlier = earlier or EarlierStates()
        self._limit = parse_prefix_cache(settings.prefix_cache)
        self.cache: PrefixCache | None = None
        self._projected: int | None = None
        if self._limit is None:
            self.obstacle: str | None = "`prefix_cache` is off."
            return
        self.obstacle = entry_obstacle or find_prefix_obstacle(host.model, stack, placement.entry)
        if self.obstacle is not None:
            log.warning("The prefix is not cached: %s Training goes on and computes it.", self.obstacle)
            earlier.close()
            return
        self._projected = _projected(host)
        folder = host.output_dir / _folder()
        self.cache = PrefixCache(host.model, stack, placement.entry, self._limit, folder, earlier=earlier)
        self._say(self._limit, settings)

    def __enter__(self) -> PrefixChoice:
        if self.cache is not None:
            self.cache.__enter__()
            self.cache.pause()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.cache is not None:
            self.cache.__exit__(*error)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let the cache work inside the block."""
        if self.cache is None:
            yield
            return
        self.cache.resume()
        try:
            yield
        finally:
            self.cache.pause()

    def hand_over(self) -> EarlierStates:
        """Give away what the cache holds, for that of a higher entry; leave this choice then."""
        return EarlierStates() if self.cache is None else self.cache.hand_over()

    @property
    def examples_served(self) -> tuple[int, int]:
        """How many examples' prefixes came from the cache, and of how many."""
        return (0, 0) if self.cache is None else self.cache.examples_served

    def count_anew(self) -> None:
        """Forget how many examples were served; what is cached stays."""
        if self.cache is not None:
            self.cache.count_anew()

    def to_dict(self) -> dict[str, Any]:
        """Return what report.json holds under `prefix_cache`."""
        if self.cache is None:
            return {"on": False, "obstacle": self.obstacle}
        sizes = {"limit_bytes": self._limit, "projected_bytes": self._projected}
        return {"on": True, **sizes, **asdict(self.cache.use)}

    def _say(self, limit: int, settings: PlacementSettings) -> None:
        predicted = predict_step(
            self._placement.num_layers,
            self._placement.layers,
            checkpointing=is_checkpointing(self._host.trainer.args),
            recompute_above_entry=settings.checkpointing_above_entry != "off",
            prefix_cached=True,
        )
        log.warning(
            "The prefix cache needs about %s for one epoch; %s are kept in memory, the rest in %s. Steps on examples "
            "seen before are predicted to be %.2fx as fast as with all-layer LoRA.",
            "an unknown number of bytes" if self._projected is None else bytes_text(self._projected),
            bytes_text(limit),
            self._host.output_dir,
            predicted.speedup,
        )


def _folder() -> str:
    """A folder of its own for each rank."""
    distributed = dist.is_available() and dist.is_initialized()
    return f"prefix_cache-rank{dist.get_rank() if distributed else 0}"


def _projected(host: Host) -> int | None:
    """Bytes of one epoch's hidden states, from the lengths in a few batches; None where the data has no length."""
    data = host.trainer.train_dataset
    if not hasattr(data, "__len__"):
        return None
    model: Any = host.model
    size, whole = host.trainer._train_batch_size, len(data)
    count = max(1, min(BATCHES_LOOKED_AT, math.ceil(whole / size)))  # of a small set all, each once
    batches = [inputs for inputs, _ in host.step_batches(count)]
    tokens = sum(int(b["attention_mask"].sum()) if "attention_mask" in b else b["input_ids"].numel() for b in batches)
    rows = min(whole, count * size)  # of the data: a batch has two for each pair, and one where rows are run end to end
    width = model.config.get_text_config().hidden_size
    itemsize = model.get_input_embeddings().weight.element_size()
    return projected_bytes(round(tokens / max(1, rows) * whole), width, itemsize)
