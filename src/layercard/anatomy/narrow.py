"""Takes the adapters of layers outside a placement out of a model, and puts them back.

Offers `narrow`, which leaves a PeftModel as a hand-written `layers_to_transform` would have built it, and `Narrowing`,
which can show the all-layer model again for the length of a block. Knows nothing of why layers were chosen, and does
not vouch for itself: `layercard.anatomy.verify` checks the outcome.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import torch
from peft import PeftModel
from torch import nn

from layercard.anatomy.adapters import BASE_PREFIX, AdapterSite, adapter_sites, base_modules, sole_adapter
from layercard.anatomy.layers import LayerStack, describe
from layercard.anatomy.other_stacks import in_towers
from layercard.anatomy.selection import Fields, Live, narrowed_fields
from layercard.errors import PlacementError

Flags = list[tuple[nn.Parameter, bool]]


def narrow(
    model: PeftModel, stack: LayerStack, layers: Sequence[int], *, shed_towers: Collection[str] = ()
) -> Narrowing:
    """Put the bare module back wherever LoRA adapts a layer of `stack` outside `layers`, and say so in the live config.

    `shed_towers` are dotted paths in `model` whose adapters go too, embeddings left alone (`other_stacks` finds them). Other
    adapters outside the stack (`lm_head`) stay. All or nothing: where something fails, the model is as it was.
    Call `layercard.anatomy.adapters.check_narrowable` first. Raises `PlacementError` where a chosen layer does not
    exist or has no adapter, or where no configuration selects exactly what stays.
    """
    sites = adapter_sites(model)
    chosen = _checked(sites, stack, layers)
    out = [is_shed(site, stack, chosen, shed_towers) for site in sites]
    shed = [site for site, goes in zip(sites, out, strict=True) if goes]
    kept = [site for site, goes in zip(sites, out, strict=True) if not goes]
    live, modules = _live(kept, stack, chosen), base_modules(model)
    configs = {id(config): config for config in model.peft_config.values()}.values()  # DPO's copy shares its config
    written = [(config, narrowed_fields(config, modules, live) if shed else {}) for config in configs]
    return Narrowing(model, chosen, shed, kept, written)


def is_shed(site: AdapterSite, stack: LayerStack, layers: Collection[int], shed_towers: Collection[str]) -> bool:
    """Whether a placement on `layers` takes the adapter at `site` out."""
    if in_towers(site.path, shed_towers):
        return not isinstance(site.base, nn.Embedding)
    return stack.layer_of(site.path) not in {None, *layers}


class Narrowing:
    """A model narrowed to `layers`; holds the modules that were shed.

    `shed_names` are the dotted paths, in the PeftModel, of the modules whose adapters were taken out,
    `all_names` those of all that were adapted before.
    """

    def __init__(
        self,
        model: PeftModel,
        layers: tuple[int, ...],
        shed: Sequence[AdapterSite],
        kept: Sequence[AdapterSite],
        written: Sequence[tuple[object, Fields]],
    ) -> None:
        self.layers = layers
        self.shed_names = tuple(site.path for site in shed)
        self.all_names = tuple(site.path for site in (*shed, *kept))
        self._shed = shed
        self._written = written
        self._found = [(config, {name: getattr(config, name) for name in fields}) for config, fields in written]
        self._targets = _Bookkeeping(model, kept)
        self._biases = _own_biases(shed) if model.peft_config[sole_adapter(model)].bias == "lora_only" else []
        self._dtype = _LiveDtype(kept)
        self._narrowed = False
        self._take_out()

    @contextmanager
    def all_layers(self) -> Iterator[None]:
        """Adapt every layer again inside the block, as before narrowing; restore the placement exactly at exit.

        The shed adapters follow what happened to the model since: device, dtype, train or eval mode. Gradients that
        the block leaves on shed adapters and on biases that only they train are dropped.
        """
        if not self._narrowed:
            raise PlacementError("The narrowing was undone, so all layers are adapted already. Narrow the model again.")
        homes = [(module, _device_of(module)) for site in self._shed for module in site.adapter_modules]
        self._put_back()
        try:
            yield
        finally:
            self._take_out()
            for parameter in chain(*(module.parameters() for module, _ in homes), (bias for bias, _ in self._biases)):
                parameter.grad = None
            for module, device in homes:
                module.to(device)

    @property
    def in_force(self) -> bool:
        """Whether the model is narrowed."""
        return self._narrowed

    def undo(self) -> None:
        """Put everything back as `narrow` found it; calling it twice changes nothing."""
        if self._narrowed:
            self._put_back()

    def redo(self) -> None:
        """Narrow again after `undo`."""
        if not self._narrowed:
            self._take_out()

    def _take_out(self) -> None:
        self._narrowed = True
        try:
            for site in self._shed:
                setattr(site.parent, site.child, site.base)
            for bias, _ in self._biases:
                bias.requires_grad_(False)
            _write(self._written)
            self._targets.write_narrowed()
        except BaseException:
            self._put_back()
            raise

    def _put_back(self) -> None:
        for site in self._shed:
            _follow(site, self._dtype.change())
            setattr(site.parent, site.child, site.wrappers[0])
        for bias, trainable in self._biases:
            bias.requires_grad_(trainable)
        _write(self._found)
        self._targets.write_found()
        self._narrowed = False


class _Bookkeeping:
    """PEFT's lists of what it adapted, for both states; the lists stay the same objects."""

    def __init__(self, model: PeftModel, kept: Sequence[AdapterSite]) -> None:
        tuner = model.base_model
        self._lists = (tuner.targeted_module_names, tuner.targeted_parameter_names)
        self._found = tuple(list(names) for names in self._lists)
        live = {s.name for s in kept if not s.parameters} | {p for s in kept for p in s.parameters}
        self._narrowed = tuple([name for name in names if name in live] for names in self._lists)

    def write_found(self) -> None:
        for names, found in zip(self._lists, self._found, strict=True):
            names[:] = found

    def write_narrowed(self) -> None:
        for names, narrowed in zip(self._lists, self._narrowed, strict=True):
            names[:] = narrowed


class _LiveDtype:
    """Watches one live adapter, to learn whether a host cast the adapters after narrowing."""

    def __init__(self, kept: Sequence[AdapterSite]) -> None:
        self._watched = next(p for site in kept for module in site.adapter_modules for p in module.parameters())
        self._before = self._watched.dtype

    def change(self) -> tuple[torch.dtype, torch.dtype] | None:
        """Return the dtype at narrowing and the one now, or None where it is the same."""
        return None if self._watched.dtype == self._before else (self._before, self._watched.dtype)


def _checked(sites: Sequence[AdapterSite], stack: LayerStack, layers: Sequence[int]) -> tuple[int, ...]:
    adapted = {stack.layer_of(site.path) for site in sites} - {None}
    wrong = [layer for layer in layers if not 0 <= layer < len(stack)]
    bare = sorted(set(layers) - adapted)
    if not layers or wrong:
        raise PlacementError(
            f"The layers to adapt are {list(layers)}; the model has layers 0–{len(stack) - 1}. Choose at least one of those."
        )
    if bare:
        raise PlacementError(
            f"The placement adapts {describe(bare, len(stack))}, where the model has no adapters; it has them in "
            f"{describe(adapted, len(stack)) if adapted else 'no layer'}. Widen `target_modules` or `layers_to_transform`, "
            "or choose other layers."
        )
    return tuple(sorted(set(layers)))


def _live(kept: Sequence[AdapterSite], stack: LayerStack, layers: tuple[int, ...]) -> Live:
    modules = {site.name: stack.layer_of(site.path) for site in kept if not site.parameters}
    inside = {n: stack.name(i).removeprefix(BASE_PREFIX) for n, i in modules.items() if i is not None}
    return Live(
        layers=layers,
        pattern=stack.pattern,
        inside=inside,
        outside=frozenset(modules.keys() - inside.keys()),
        parameters=frozenset(p for site in kept for p in site.parameters),
    )


def _own_biases(shed: Sequence[AdapterSite]) -> Flags:
    """The biases that are trainable only because their module was adapted, with their flags."""
    own = (dict(site.base.named_parameters(recurse=False)).get("bias") for site in shed)
    return [(bias, bias.requires_grad) for bias in own if bias is not None]


def _follow(site: AdapterSite, cast: tuple[torch.dtype, torch.dtype] | None) -> None:
    """Give shed adapters the mode and device of their module, and the dtype that the live adapters were cast to."""
    for wrapper in site.wrappers:
        wrapper.training = site.base.training
    for module in site.adapter_modules:
        module.train(site.base.training)
        module.to(_device_of(site.base))
        if cast is not None and any(p.dtype == cast[0] for p in module.parameters()):
            module.to(cast[1])


def _device_of(module: nn.Module) -> torch.device | None:
    tensor = next(chain(module.parameters(), module.buffers()), None)
    return None if tensor is None else tensor.device


def _write(configs: Sequence[tuple[object, Fields]]) -> None:
    for config, fields in configs:
        for name, value in fields.items():
            setattr(config, name, value)
