"""`LayerPlacement`: the chosen layers, why, and what is expected of them; read from and written to placement.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from layercard.anatomy.words import describe, how_many
from layercard.errors import PlacementError
from layercard.files import json_text, write_text
from layercard.settings.checks import OtherStacks

SCHEMA_VERSION = 1
Evidence = Literal["measured card", "published", "predicted", "none"]


@dataclass(frozen=True)
class LayerPlacement:
    """Layers to adapt, ascending, numbered from 0 at the input; `num_layers` is the model's depth."""

    layers: tuple[int, ...]
    num_layers: int
    strategy: str
    score: str | None
    reason: str
    evidence: Evidence = "none"
    cards: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION
    expected: Mapping[str, Any] | None = field(default=None, hash=False)
    """What the `cards` lead one to expect, as JSON: `outcome`, `share_kept` of all-layer LoRA's gain in `metric`,
    `step_seconds_ratio`, `peak_memory_ratio` (both over all-layer LoRA), and each card's correlation; None without cards."""
    adaptable: tuple[int, ...] | None = None
    """The layers that have adapters, ascending; None: every layer."""
    other_stacks: OtherStacks | None = None
    """What becomes of adapters on other stacks of the model; None: it has no other stack."""
    made_for: Mapping[str, Any] | None = field(default=None, hash=False)
    """The record of what it was chosen for (`layercard.placement.made_for`); None in files of earlier releases."""

    def __post_init__(self) -> None:
        outside = [i for i in self.layers if not 0 <= i < self.num_layers]
        if outside:
            raise PlacementError(
                f"Layer {outside[0]} is out of range: the model has layers 0–{self.num_layers - 1}. Choose among those."
            )
        if not self.layers:
            raise PlacementError("The placement holds no layer, so nothing would train. Choose at least one layer.")
        if list(self.layers) != sorted(set(self.layers)):
            raise PlacementError(f"Layers must be ascending and named once; found {list(self.layers)}.")

    @property
    def entry(self) -> int:
        """The lowest adapted layer; everything below it is the frozen prefix."""
        return self.layers[0]

    @property
    def every_layer(self) -> tuple[int, ...]:
        """What all-layer LoRA adapts: every layer that has adapters."""
        return tuple(range(self.num_layers)) if self.adaptable is None else self.adaptable

    @property
    def is_all(self) -> bool:
        """Whether it is all-layer LoRA itself: every layer that has adapters, and no other stack shed."""
        return self.layers == self.every_layer and self.other_stacks != "shed"

    @property
    def many(self) -> str:
        """How many layers are adapted, for people."""
        return how_many(len(self.layers), self.num_layers, self.adaptable)

    def among(self, adaptable: tuple[int, ...] | None) -> LayerPlacement:
        """Return itself for a model that has adapters in `adaptable` (None: every layer) alone.

        Raises `PlacementError` where the model has none in a layer that is to be adapted.
        """
        bare = sorted(set(self.layers) - set(self.every_layer if adaptable is None else adaptable))
        if bare and adaptable is not None:
            raise PlacementError(f"The placement adapts {without_adapters(bare, adaptable, self.num_layers)}")
        return replace(self, adaptable=adaptable)

    def digest(self) -> str:
        """Return a hash of the chosen layers, the same on every rank that chose the same."""
        return hashlib.sha256(json.dumps([self.num_layers, list(self.layers)]).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return what placement.json holds."""
        adaptable = None if self.adaptable is None else list(self.adaptable)
        return asdict(self) | {"layers": list(self.layers), "cards": list(self.cards), "adaptable": adaptable}

    def save(self, path: Path) -> None:
        """Write placement.json atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "placement") -> LayerPlacement:
        """Build from what placement.json holds; raise `PlacementError` where it does not fit."""
        version = values.get("schema_version")
        if version != SCHEMA_VERSION:
            raise PlacementError(
                f"{source} has schema_version {version!r}; this layercard reads {SCHEMA_VERSION}. Make it again with "
                "`layercard plan`."
            )
        try:
            known = {name: values[name] for name in ("layers", "num_layers", "strategy", "score", "reason")}
        except KeyError as missing:
            raise PlacementError(f"{source} lacks {missing}. Make it again with `layercard plan`.") from None
        if not isinstance(known["layers"], list) or not all(type(i) is int for i in known["layers"]):
            raise PlacementError(f"{source}: `layers` is {known['layers']!r}; it is a list of whole numbers.")
        if type(known["num_layers"]) is not int:
            raise PlacementError(f"{source}: `num_layers` is {known['num_layers']!r}; it is a whole number.")
        for name in ("expected", "made_for"):
            if values.get(name) is not None and not isinstance(values[name], dict):
                raise PlacementError(f"{source}: `{name}` is {values[name]!r}; it is a JSON object, or null.")
        adaptable = values.get("adaptable")
        if adaptable is not None and not (isinstance(adaptable, list) and all(type(i) is int for i in adaptable)):
            raise PlacementError(f"{source}: `adaptable` is {adaptable!r}; it is a list of whole numbers, or null.")
        others = values.get("other_stacks")
        if others not in (None, "shed", "keep"):
            raise PlacementError(f"{source}: `other_stacks` is {others!r}; it is `shed`, `keep` or null.")
        return cls(
            **(known | {"layers": tuple(known["layers"])}),
            evidence=values.get("evidence", "none"),
            cards=tuple(values.get("cards", ())),
            expected=values.get("expected"),
            adaptable=None if adaptable is None else tuple(adaptable),
            other_stacks=others,
            made_for=values.get("made_for"),
        )

    @classmethod
    def load(cls, path: Path) -> LayerPlacement:
        """Read placement.json (or a file whose `placement` key holds it); raise `PlacementError` where it cannot be."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise PlacementError(f"{path} does not exist. Write one with `layercard plan MODEL … -o {path}`.") from None
        except (OSError, ValueError) as error:
            raise PlacementError(
                f"{path} cannot be read as JSON ({error}). Make it again with `layercard plan`."
            ) from None
        if isinstance(values, dict) and isinstance(values.get("placement"), dict):
            values = values["placement"]
        if not isinstance(values, dict):
            raise PlacementError(f"{path} holds a {type(values).__name__}; a placement is a JSON object.")
        return cls.from_dict(values, source=str(path))

    def fit(self, num_layers: int) -> LayerPlacement:
        """Return itself where it was made for that depth; raise `PlacementError` otherwise."""
        if self.num_layers != num_layers:
            raise PlacementError(
                f"The placement was made for {self.num_layers} layers and the model has {num_layers}. Make one for this "
                "model with `layercard plan`."
            )
        return replace(self)


def without_adapters(bare: Collection[int], adaptable: Collection[int], num_layers: int) -> str:
    """Return what to say of layers that hold no adapter, with those that do."""
    return (
        f"{describe(bare, num_layers)}, where the model has no adapters; it has them in {describe(adaptable, num_layers)}. "
        "Choose among those, or widen `target_modules` or `layers_to_transform`."
    )


def write_json(path: Path, document: Any) -> None:
    """Write JSON so that a reader never sees half of it."""
    write_text(path, json_text(document))
