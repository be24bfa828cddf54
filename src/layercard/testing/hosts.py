"""`check_host`: whether a host answers for its trainer as the pipeline relies on.

The trainer is a real one, small, built and not yet trained; it is read and stepped, and left as it came.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from layercard.hosts.protocol import Host
from layercard.random_state import random_state

ROWS = 4


def check_host(host: Host) -> None:
    """Raise `AssertionError` unless `host` supplies batches, losses and steps and leaves trainer and random state alone.

    Parameters: `host` of a trainer with a PEFT model, at least eight training rows, and no optimizer yet.
    Checked: batches on the CPU that repeat and draw nothing from the random state; a finite scalar loss with gradients for
    adapters; steps that fill adapters' gradients and no others; held-out rows one a batch; that `preserved` puts the
    trainer's counters and metrics back.
    """
    weights = {name: value.clone() for name, value in host.model.state_dict().items() if isinstance(value, Tensor)}
    generators = _generators()
    batch = _check_probe_batches(host)
    _check_loss(host, batch)
    _check_steps(host)
    _check_heldout(host)
    if generators != _generators():
        raise AssertionError(
            f"{host.name}: the random state has moved. Draw with a generator of your own, or put it back."
        )
    for name, value in host.model.state_dict().items():
        if isinstance(value, Tensor) and not torch.equal(value, weights[name]):
            raise AssertionError(
                f"{host.name}: `{name}` has changed. A host reads the model and steps it; it trains nothing."
            )


def _check_probe_batches(host: Host) -> Mapping[str, Any]:
    first, second = (list(host.probe_batches(ROWS, 2, 0)) for _ in range(2))
    if not first:
        raise AssertionError(f"{host.name}: `probe_batches({ROWS}, 2, 0)` gave no batch.")
    if [_plain(batch) for batch in first] != [_plain(batch) for batch in second]:
        raise AssertionError(f"{host.name}: `probe_batches` gave other batches for the same seed the second time.")
    for name, value in first[0].items():
        if isinstance(value, Tensor) and value.device.type != "cpu":
            raise AssertionError(
                f"{host.name}: `{name}` of a probe batch is on {value.device}. Probe batches stay on the CPU."
            )
    return first[0]


def _check_loss(host: Host, batch: Mapping[str, Any]) -> None:
    with random_state():
        loss = host.loss(host.model, _on(batch, host.device))
    if not isinstance(loss, Tensor) or loss.dim() != 0 or not bool(loss.isfinite()):
        raise AssertionError(f"{host.name}: `loss` returned {loss!r}. It is a finite scalar, a mean over label terms.")
    trained = [p for p in host.model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, trained, allow_unused=True)
    if not any(gradient is not None and bool(gradient.any()) for gradient in found):
        raise AssertionError(f"{host.name}: `loss` depends on no adapter of the model.")


def _check_steps(host: Host) -> None:
    batches = host.step_batches(2)
    if len(batches) != 2:
        raise AssertionError(f"{host.name}: `step_batches(2)` returned {len(batches)} batches.")
    before = _counters(host.trainer)
    with random_state(), host.preserved():
        host.training_step(host.model, batches[0])
    if (moved := _moved(before, _counters(host.trainer))) is not None:
        raise AssertionError(f"{host.name}: a step inside `preserved` moved the trainer's `{moved}`.")
    _take_gradients(host.model, host.name)
    updates = host.update_batches(2, 0)
    each = host.trainer.args.gradient_accumulation_steps
    if [len(update) for update in updates] != [each, each]:
        raise AssertionError(
            f"{host.name}: `update_batches(2, 0)` returned {[len(u) for u in updates]} micro-batches an optimizer step; the "
            f"trainer accumulates {each}."
        )


def _take_gradients(model: nn.Module, name: str) -> None:
    wrong = [n for n, p in model.named_parameters() if p.grad is not None and not p.requires_grad]
    filled = [p for p in model.parameters() if p.grad is not None]
    for parameter in filled:
        parameter.grad = None
    if wrong or not filled:
        raise AssertionError(f"{name}: a training step gave gradients to {wrong[:1] or 'nothing'}; adapters get them.")


def _check_heldout(host: Host) -> None:
    heldout = host.heldout_batches(2)
    with torch.no_grad(), random_state(), host.preserved():
        losses = [host.heldout_loss(host.model, _on(batch, host.device)) for batch in heldout.batches]
    if not losses or not all(loss.dim() == 0 and bool(loss.isfinite()) for loss in losses):
        raise AssertionError(
            f"{host.name}: held-out losses are {losses!r}. Each batch of one row gives a finite scalar."
        )


def _counters(trainer: Any) -> dict[str, str]:
    """What a step may move, as text: numbers, lists and mappings of the trainer and its state."""
    return {
        f"{owner}{name}": repr(value)
        for owner, held in (("", vars(trainer)), ("state.", vars(trainer.state)))
        for name, value in held.items()
        if isinstance(value, int | float | list | dict)
    }


def _moved(before: Mapping[str, str], after: Mapping[str, str]) -> str | None:
    """The first name whose value differs; what a step set for the first time counts only once it was there."""
    return next((name for name, value in before.items() if after.get(name) != value), None)


def _on(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def _plain(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in batch.items()}


def _generators() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
