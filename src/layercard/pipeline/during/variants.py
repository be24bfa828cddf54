"""The runs that are timed against each other inside `train()`, and when they cannot be.

baseline   all-layer LoRA as the host would run it: shed adapters back in, the gradient entry where the host has it
adapters   the chosen layers' adapters alone, the gradient entry still where the host has it
placed     as this run trains: the chosen layers, the gradient entry moved
cached     the same with the prefix of every batch in the cache
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from layercard.cost.timing import Variant
from layercard.cost.untouched import clear_gradients
from layercard.hosts.rows import reads_once

if TYPE_CHECKING:
    from layercard.anatomy.gradient_entry import GradientEntry
    from layercard.anatomy.narrow import Narrowing
    from layercard.hosts.protocol import Host
    from layercard.pipeline.during.cache import PrefixChoice

BASELINE, ADAPTERS, PLACED, CACHED = "baseline", "adapters", "placed", "cached"


def stepper(host: Host, batches: list[Any]) -> Callable[[int], None]:
    """Return the function that runs the host's step on the batch of a number and drops the gradients."""

    def step(batch: int) -> None:
        host.training_step(host.model, batches[batch % len(batches)])
        clear_gradients(host.model)

    return step


def make_variants(
    narrowing: Narrowing, entry: GradientEntry | None, step: Callable[[int], None], *, split: bool
) -> list[Variant]:
    """Return the variants to time; `adapters` only with `split`, and only where the gradient entry moves."""
    variants = [Variant(BASELINE, narrowing.all_layers, step), Variant(PLACED, entering(entry), step)]
    if split and entry is not None:
        variants.insert(1, Variant(ADAPTERS, nullcontext, step))
    return variants


def entering(entry: GradientEntry | None) -> Callable[[], AbstractContextManager[object]]:
    """Return what puts the gradient entry in force for a block; nothing where it cannot move."""
    return nullcontext if entry is None else lambda: entry


def cached_variant(entry: GradientEntry, prefix: PrefixChoice, step: Callable[[int], None]) -> Variant:
    """Return the placed variant with the prefix cache at work."""

    @contextmanager
    def entered() -> Iterator[None]:
        with entry, prefix.running():
            yield

    return Variant(CACHED, entered, step)


def why_not_timed(trainer: Any) -> str | None:
    """Return in a sentence why steps of this trainer cannot be timed one by one, or None where they can."""
    args = trainer.args
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        kind = "FSDP" if trainer.is_fsdp_enabled else "DeepSpeed"
        return f"{kind} shards the model's modules, which cannot be exchanged for the length of a step."
    if args.n_gpu > 1:
        return "torch.nn.DataParallel copies the model in every step. Launch one process a GPU to measure."
    if args.torch_compile:
        return "torch.compile would compile the model anew for every variant."
    if any(kind in str(args.optim).lower() for kind in ("lomo", "layerwise")):
        return f"The optimizer `{args.optim}` updates weights during backward, so no step can be tried out."
    if trainer.train_dataset is not None and reads_once(trainer.train_dataset):
        kind = type(trainer.train_dataset).__name__
        return f"The training set ({kind}) can be read only once, so steps cannot be timed on its rows and train on them too."
    if trainer.get_cp_size() * trainer.get_sp_size() * trainer.get_tp_size() > 1:
        return "A step is split over processes (context, sequence or tensor parallelism); it cannot be timed apart."
    return None


def largest(batches: list[Any]) -> int:
    """Return the number of the batch with the most input elements, whose step has the highest peak."""
    sizes = [sum(v.numel() for v in inputs.values() if hasattr(v, "numel")) for inputs, _ in batches]
    return sizes.index(max(sizes))


def out_of_memory(error: RuntimeError) -> bool:
    """Whether the error says that memory ran out, as accelerate judges."""
    from accelerate.utils.memory import should_reduce_batch_size

    answer: Any = should_reduce_batch_size(error)
    return bool(answer)
