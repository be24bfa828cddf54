"""Makes the record of what layers were chosen for: of a trainer's run, and of a command.

What cannot be known (weights that were not loaded, data that can be read only once) is null in it, and compared with
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from transformers import PreTrainedConfig

from layercard.anatomy.adapters import BASE_PREFIX, sole_adapter
from layercard.cards.fingerprint import model_fingerprint, public_id
from layercard.errors import ModelError
from layercard.hosts.digest import rows_facts
from layercard.placement.made_for import make_record

if TYPE_CHECKING:
    from torch import nn

    from layercard.anatomy.layers import LayerStack
    from layercard.hosts.protocol import Host
    from layercard.placement.placement import LayerPlacement
    from layercard.settings import PlacementSettings

MODEL_FACTS = ("id", "revision", "architecture", "num_layers", "fingerprint", "dtype", "quantization")


def record_of_run(
    host: Host, settings: PlacementSettings, stack: LayerStack, target_modules: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return the record of a trainer's run; `target_modules` stand in for adapters where the model has none yet."""
    targets: Any = target_modules
    if isinstance(host.model, PeftModel):
        targets = host.model.peft_config[sole_adapter(host.model)].target_modules
    return make_record(
        model=model_facts(host.model, stack),
        layers_path=bare_path(stack),
        target_modules=targets,
        data=rows_facts(host.trainer.train_dataset, settings.random_seed),
        settings=settings,
    )


def model_facts(model: nn.Module, stack: LayerStack) -> dict[str, Any]:
    """Return what tells a model from others; the fingerprint is None where its weights are not there."""
    try:
        found = model_fingerprint(model, stack=stack)
        return {name: found[name] for name in MODEL_FACTS}
    except ModelError:
        base = model.base_model.model if isinstance(model, PeftModel) else model
        return facts_without_weights(base, len(stack))


def facts_without_weights(base: Any, num_layers: int) -> dict[str, Any]:
    """Return what a model's configuration alone says."""
    config = vars(base).get("config")
    known: dict[str, Any] = dict.fromkeys(MODEL_FACTS) | {"architecture": type(base).__name__, "num_layers": num_layers}
    if not isinstance(config, PreTrainedConfig):
        return known | {"id": type(base).__name__}
    name = public_id(config.name_or_path) or type(base).__name__
    return known | {"id": name, "revision": vars(config).get("_commit_hash")}


def bare_path(stack: LayerStack) -> str:
    """Return the path of the stack in the bare base model."""
    return stack.path.removeprefix(BASE_PREFIX)


def recorded(placement: LayerPlacement, record: Mapping[str, Any], source: Path | None) -> LayerPlacement:
    """Return the placement with the record of this run.

    Where it was read from the file `source`, what it was chosen for stands under `taken_from`.
    """
    if source is None:
        return replace(placement, made_for=record)
    chosen_for = placement.made_for or {}
    taken_from = chosen_for.get("taken_from") or {"file": source.name, "made_for": placement.made_for}
    return replace(placement, made_for={**record, "taken_from": taken_from})
