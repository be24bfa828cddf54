"""What a LoRA configuration selects, and how to write one that selects exactly given modules.

Offers `selected_modules` and `selected_parameters`, PEFT's own reading of a configuration, and `narrowed_fields`, the
fields to write so that every supported PEFT, given a fresh base model, adapts exactly the live modules: an adapter is often
loaded by another release than the one that trained it. Works on names alone.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import MIN_TARGET_MODULES_FOR_OPTIMIZATION
from torch import nn

from layercard.errors import PlacementError

Fields = dict[str, Any]

READINGS = (r".*\.{}\.(\d+)\.", r".*?\.{}\.(\d+)\.", r"(?:^|.*?\.){}\.(\d+)\.")
"""How PEFT finds a module's layer number behind `layers_pattern`: 0.18 and 0.19 the last one, 0.20 the first, 0.21 also at
the root of the model (`check_target_module_exists` in peft/tuners/tuners_utils.py of each)."""


@dataclass(frozen=True)
class Live:
    """What stays adapted, by names in the bare base model, and the chosen layers.

    `inside` maps the live modules of the stack to their layer's name, `outside` holds those elsewhere (`lm_head`),
    `parameters` the live adapted parameters.
    """

    layers: tuple[int, ...]
    pattern: str
    inside: Mapping[str, str]
    outside: frozenset[str]
    parameters: frozenset[str]

    @property
    def modules(self) -> set[str]:
        """All modules that stay adapted as modules."""
        return {*self.inside, *self.outside}


def selected_modules(config: Any, names: Iterable[str]) -> set[str]:
    """Return the module names that PEFT would adapt under `config`."""
    tied = _tied(config)
    return {name for name in names if name and (check_target_module_exists(config, name) or _ends_with(name, tied))}


def selected_by_releases(config: Any, names: Iterable[str]) -> list[set[str]]:
    """Return the module names that `config` selects in each PEFT that reads `layers_to_transform` in its own way.

    Releases differ in the layer number alone; a name given in full, and a regular expression, are not asked for theirs.
    """
    anywhere = selected_modules(with_fields(config, {"layers_to_transform": None, "layers_pattern": None}), names)
    if not config.layers_to_transform or isinstance(config.target_modules, str):
        return [anywhere]
    free = {*config.target_modules, *(name for name in anywhere if _ends_with(name, _tied(config)))}
    layers = config.layers_to_transform
    layers = [layers] if isinstance(layers, int) else layers
    return [
        {name for name in anywhere if name in free or _layer(name, reading, config.layers_pattern) in layers}
        for reading in READINGS
    ]


def selected_parameters(config: Any, modules: Mapping[str, nn.Module]) -> set[str]:
    """Return the names of the parameters that PEFT would adapt under `config.target_parameters`."""
    targets = config.target_parameters or ()
    names = (f"{m}.{p}" for m, module in modules.items() for p, _ in module.named_parameters(recurse=False))
    return {name for name in names if _ends_with(name, targets)}


def narrowed_fields(config: Any, modules: Mapping[str, nn.Module], live: Live) -> Fields:
    """Return the fields of `config` to write so that PEFT selects exactly `live` in a model of these `modules`.

    Target names with `layers_to_transform` where they select exactly that in every supported PEFT; otherwise full names, for
    which PEFT needs no layers; and where a full name ends others' names, a regular expression of all of them. Raises
    `PlacementError` where none does.
    """
    shared = {
        "target_parameters": sorted(live.parameters) or (config.target_parameters and []),
        "rank_pattern": _matching(config.rank_pattern, live),
        "alpha_pattern": _matching(config.alpha_pattern, live),
    }
    for spelling in _spellings(config, live):
        fields = spelling | shared
        candidate = with_fields(config, fields)
        readings = [selected_modules(candidate, modules), *selected_by_releases(candidate, modules)]
        exact = all(selected == live.modules for selected in readings) and not _is_shortened(candidate, live)
        if exact and selected_parameters(candidate, modules) == live.parameters:
            return fields
    raise PlacementError(
        f"No `target_modules` select exactly the {len(live.modules) + len(live.parameters)} adapted modules of layers "
        f"{list(live.layers)}: their names also end names of other modules. Choose other target modules."
    )


def with_fields(config: Any, fields: Fields) -> Any:
    """Return a copy of `config` with `fields`."""
    changed = copy.copy(config)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _spellings(config: Any, live: Live) -> Iterator[Fields]:
    """Ways to write the target modules, the one nearest to the user's first."""
    layered = {"layers_to_transform": list(live.layers), "layers_pattern": live.pattern}
    inner = {name.removeprefix(f"{layer}.") for name, layer in live.inside.items()}
    if live.inside and not isinstance(config.target_modules, str):
        yield {"target_modules": {*config.target_modules, *live.outside}, **layered}
    if live.inside:
        yield {"target_modules": {name.rsplit(".", 1)[-1] for name in inner} | live.outside, **layered}
        yield {"target_modules": inner | live.outside, **layered}
    anywhere = {"layers_to_transform": None, "layers_pattern": None}
    yield {"target_modules": live.modules, **anywhere}
    yield {"target_modules": "|".join(re.escape(name) for name in sorted(live.modules)), **anywhere}


def _is_shortened(config: Any, live: Live) -> bool:
    """Whether PEFT shortens the target names when it loads them: of so many it keeps suffixes, for which it asks for a layer."""
    many = (
        not isinstance(config.target_modules, str) and len(config.target_modules) >= MIN_TARGET_MODULES_FOR_OPTIMIZATION
    )
    return many and bool(live.outside) and bool(config.layers_to_transform)


def _tied(config: Any) -> Iterable[str]:
    """Names that PEFT adapts because they share a weight with a target; it sets them itself, they are no field."""
    return vars(config).get("target_modules_to_tie") or ()


def _layer(name: str, reading: str, pattern: Any) -> int | None:
    """Return the layer number that one reading finds in a module's name; a list of patterns is tried in order."""
    patterns = [pattern] if isinstance(pattern, str) else pattern
    found = (re.match(reading.format(each), name) for each in patterns)
    return next((int(match.group(1)) for match in found if match is not None), None)


def _matching(patterns: Mapping[str, int] | None, live: Live) -> dict[str, int]:
    """The rank or alpha patterns that match something live; PEFT warns of the others when it loads the adapter."""
    names = live.modules | live.parameters
    return {p: v for p, v in (patterns or {}).items() if any(re.match(rf"(.*\.)?({p})$", name) for name in names)}


def _ends_with(name: str, targets: Iterable[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)
