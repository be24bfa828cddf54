"""Checks that a placement took effect, without asking the code that applied it.

Offers `expected_trainable`, which derives the names of all trainable parameters from the configuration and the names
of the bare model alone, `verify_placement`, which compares them with the live model, and `check_checkpoint`, which
compares a checkpoint's adapters with the live ones. Beside the adapter that trains, others may stand frozen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from layercard.anatomy.adapters import BASE_PREFIX, base_modules, sole_adapter
from layercard.anatomy.checkpoint_file import saved_names
from layercard.anatomy.layers import LayerStack, describe
from layercard.anatomy.other_stacks import in_towers
from layercard.anatomy.selection import selected_modules, selected_parameters
from layercard.errors import PlacementError

SHOWN = 3


def expected_trainable(model: PeftModel, stack: LayerStack, layers: Sequence[int]) -> set[str]:
    """Return the names of the parameters that should train when LoRA adapts `layers` of `stack`.

    They are the adapters of those layers and of targets outside the stack, `modules_to_save`,
    `trainable_token_indices`, and biases as `bias` declares them.
    """
    adapter = sole_adapter(model)
    config = model.peft_config[adapter]
    modules = base_modules(model)
    wanted = {None, *layers}
    targets = {n for n in selected_modules(config, modules) if stack.layer_of(BASE_PREFIX + n) in wanted}
    parameters = [n for n in selected_parameters(config, modules) if stack.layer_of(BASE_PREFIX + n) in wanted]
    names = chain(
        *(_module_adapters(config, name, modules[name], adapter) for name in targets),
        _parameter_adapters(parameters, adapter),
        _saved_modules(config, modules, adapter),
        _token_adapters(config, model, modules, adapter),
        _biases(config, model, modules, targets, parameters),
    )
    return _first_names(model, {BASE_PREFIX + name for name in names})


def verify_placement(
    model: PeftModel, stack: LayerStack, layers: Sequence[int], *, shed_towers: Collection[str] = ()
) -> None:
    """Raise `PlacementError` unless exactly the expected parameters train and the config saves exactly those layers.

    In `shed_towers` (dotted paths in `model`) nothing but embeddings may be adapted. Where every factor A is frozen (LoRA-FA),
    what is left must train.
    """
    adapter = sole_adapter(model)
    config = model.peft_config[adapter]
    modules = base_modules(model)
    selected = selected_modules(config, modules) | selected_parameters(config, modules)
    beside = sorted(n for n in selected if in_towers(BASE_PREFIX + n, shed_towers) and not _embeds(modules.get(n)))
    if beside:
        raise PlacementError(
            f"The adapter's configuration selects `{beside[0]}` and {len(beside) - 1} more modules of a stack whose adapters "
            "were taken out. Build the trainer again and place once."
        )
    in_config = {stack.layer_of(BASE_PREFIX + name) for name in selected} - {None}
    if in_config != set(layers):
        raise PlacementError(
            f"The adapter's configuration selects {describe(in_config, len(stack)) if in_config else 'no layer'} and the "
            f"placement is {describe(layers, len(stack))}. A saved adapter would not hold what was trained. Build the "
            "trainer again and place once."
        )
    expected = expected_trainable(model, stack, layers)
    actual = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if a_is_frozen(model, adapter):
        expected -= factors_a(model, adapter).keys()
    if expected != actual:
        raise PlacementError(
            f"The trainable parameters are not those of {describe(layers, len(stack))}: "
            f"{_difference(expected - actual, 'should train and do not')}"
            f"{_difference(actual - expected, 'train and should not')}"
            "Adapt nothing by hand, and freeze nothing but every `lora_A` alike, which LoRA-FA does."
        )


def factors_a(model: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """Return the A factors of an adapter's linear modules and parameters, by name."""
    return {name: p for name, p in model.named_parameters() if f".lora_A.{adapter}." in name}


def a_is_frozen(model: nn.Module, adapter: str) -> bool:
    """Whether no factor A of the adapter trains."""
    return not any(parameter.requires_grad for parameter in factors_a(model, adapter).values())


def check_checkpoint(path: Path, model: PeftModel, stack: LayerStack) -> None:
    """Raise `PlacementError` where the checkpoint folder's adapters stand in other modules than the model's.

    PEFT loads such a checkpoint without a word, leaving some adapters at their initial values and dropping others.
    """
    live = adapted_modules((name for name, _ in model.named_parameters()), sole_adapter(model))
    saved = adapted_modules(saved_names(path))
    if live == saved:
        return
    layers = _layers(stack, saved), _layers(stack, live)
    there, here = (describe(found, len(stack)) if found else "no layer" for found in layers)
    raise PlacementError(
        f"The checkpoint {path} adapts {there} and the model {here}: "
        f"{_difference(saved - live, 'stand only in the checkpoint')}{_difference(live - saved, 'only in the model')}"
        f"To go on with it, give `lora_layers: {layers[0]}`, or the placement.json that it was trained with; to place "
        "anew, start a new run in another folder."
    )


def _embeds(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Embedding)


def _layers(stack: LayerStack, names: Iterable[str]) -> list[int]:
    """The layers in which these modules lie, ascending."""
    return sorted({layer for name in names if (layer := stack.layer_of(name)) is not None})


def _module_adapters(config: Any, name: str, module: nn.Module, adapter: str) -> Iterator[str]:
    if isinstance(module, nn.Embedding):
        yield from (f"{name}.lora_embedding_{factor}.{adapter}" for factor in "AB")
    else:
        yield from (f"{name}.lora_{factor}.{adapter}.weight" for factor in "AB")
        if config.lora_bias:
            yield f"{name}.lora_B.{adapter}.bias"
    if config.use_dora:
        yield f"{name}.lora_magnitude_vector.{adapter}.weight"


def _parameter_adapters(parameters: Iterable[str], adapter: str) -> Iterator[str]:
    """One wrapper a parameter, nested where a module has several."""
    holders = [name.rpartition(".")[0] for name in parameters]
    for holder in set(holders):
        for depth in range(holders.count(holder)):
            yield from (f"{holder}{'.base_layer' * depth}.lora_{factor}.{adapter}.weight" for factor in "AB")


def _saved_modules(config: Any, modules: Mapping[str, nn.Module], adapter: str) -> Iterator[str]:
    ends = tuple(config.modules_to_save or ())
    for name, module in modules.items():
        if ends and name.endswith(ends):
            yield from (f"{name}.modules_to_save.{adapter}.{p}" for p, _ in module.named_parameters())


def _token_adapters(config: Any, model: PeftModel, modules: Mapping[str, nn.Module], adapter: str) -> Iterator[str]:
    indices = config.trainable_token_indices
    if not indices:
        return
    if isinstance(indices, dict):
        names = [name for name in modules if name.endswith(tuple(indices))]
    else:
        bare = {id(module): name for name, module in modules.items()}
        inside = (bare.get(id(module)) for module in model.get_input_embeddings().modules())
        names = [next(name for name in inside if name is not None)]
    yield from (f"{name}.token_adapter.trainable_tokens_delta.{adapter}" for name in names)


def _biases(
    config: Any,
    model: PeftModel,
    modules: Mapping[str, nn.Module],
    targets: Iterable[str],
    parameters: Sequence[str],
) -> Iterator[str]:
    if config.bias == "all":
        names = (name.removeprefix(BASE_PREFIX) for name, _ in model.named_parameters())
        yield from (name for name in names if name.endswith(".bias") and ".original_module." not in name)
    elif config.bias == "lora_only":
        holders = [name.rpartition(".")[0] for name in parameters]
        depths = dict.fromkeys(targets, 1) | {holder: holders.count(holder) for holder in holders}
        for name, depth in depths.items():
            if "bias" in dict(modules[name].named_parameters(recurse=False)):
                yield f"{name}{'.base_layer' * depth}.bias"


def _first_names(model: nn.Module, names: set[str]) -> set[str]:
    """Replace the second names of tied parameters by those that `named_parameters` uses."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = dict(model.named_parameters(remove_duplicate=False))
    return {first[id(every[name])] if name in every else name for name in names}


def _difference(names: set[str], what: str) -> str:
    if not names:
        return ""
    shown = ", ".join(f"`{name}`" for name in sorted(names)[:SHOWN])
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{shown}{more} {what}. "


def adapted_modules(names: Iterable[str], adapter: str | None = None) -> set[str]:
    """Return the dotted paths of the modules that have a LoRA factor among these parameter names.

    Of one `adapter` where it is named, as in a live model; saved names have no adapter's name in them.
    """
    return {module for module, found in _factors(names) if adapter is None or found == adapter}


def loaded_modules(names: Iterable[str], adapter: str) -> set[str]:
    """Return the modules with a factor in a state that PEFT gives a model, empty where it is another adapter's.

    PEFT puts the adapter's name into those names alone whose module the model has.
    """
    held = list(_factors(names))
    others = any(found is not None and found != adapter for _, found in held)
    mine = any(found == adapter for _, found in held)
    return {module for module, found in held if found in (adapter, None)} if mine or not others else set()


def _factors(names: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """Yield the module of each factor A, and its adapter where the name has one."""
    for name in names:
        for factor in (".lora_A.", ".lora_embedding_A"):
            module, held, rest = name.partition(factor)
            if held:
                adapter = rest.strip(".").removesuffix("weight").strip(".")
                yield module, adapter or None
