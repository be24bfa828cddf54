"""What a placement was chosen for: the record under `made_for` in placement.json, and how two of them differ.

    model            id, revision, architecture, depth, fingerprint of the weights or of their files, dtype, quantization
    layers_path      the stack of layers, as the bare base model names it
    target_modules   what LoRA adapts; null where it was not said
    data             the rows or the file that were there to be looked at, and a digest of a bounded part of them
    settings         every setting that a choice may depend on
    versions, date   when, and with which releases

Knows nothing of trainers or files: `layercard.pipeline.before.record` makes the records of a run and of a command.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from layercard.settings import PlacementSettings
from layercard.versions import installed_versions

PACKAGES = ("layercard", "torch", "transformers", "peft", "accelerate", "datasets")
TRAINING_ONLY = {
    "measure", "measure_budget", "guard", "on_quality_loss", "quality_threshold", "guard_budget", "prefix_cache", "control",
    "gradient_entry", "checkpointing_above_entry", "schedule",
}  # fmt: skip
"""Settings of a training run that no choice of layers depends on, unless predicted times decide; a resumed run keeps those."""
PROBE = {"probe_examples", "probe_batch_size", "probe_rank", "probe_budget"}
AUTO = {"prefer", "cards", "community_cards", "min_spearman"}
WITHOUT_CHANCE = {"auto", "indices", "all", "first", "middle", "last", "uniform"}
"""Built-in strategies that draw nothing, unless they read a score of sampled examples."""
READ_BY = ("task", "columns", "max_length", "config", "split")
"""Options of a command by which the same data read otherwise."""
SEEN_IN_LAYERS = {"lora_layers", "strategy", "indices", "num_layers", "fraction", "min_entry", "score", "layers_path"}
"""Settings that show in the placement itself, and are compared with it."""


@dataclass(frozen=True)
class Difference:
    """One thing that was otherwise when the layers were chosen; `field` is what people call it."""

    field: str
    then: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.field} was {_shown(self.then)} and is {_shown(self.now)}"


def make_record(
    *,
    model: Mapping[str, Any],
    layers_path: str,
    target_modules: Any,
    data: Mapping[str, Any] | None,
    settings: PlacementSettings,
) -> dict[str, Any]:
    """Return the record, as JSON; `target_modules` are names, a regular expression, or None where nobody said."""
    names = target_modules if target_modules is None or isinstance(target_modules, str) else sorted(target_modules)
    return {
        "model": dict(model),
        "layers_path": layers_path,
        "target_modules": names,
        "data": None if data is None else dict(data),
        "settings": choice_settings(settings),
        "versions": installed_versions(PACKAGES),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def choice_settings(settings: PlacementSettings) -> dict[str, Any]:
    """Return the settings that a choice of layers may depend on; files by their names, for the record is passed on."""
    held = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name not in TRAINING_ONLY}
    files = {name: Path(held[name]).name for name in ("lora_layers", "cards") if str(held[name]).endswith(".json")}
    return held | files | {"indices": None if settings.indices is None else sorted(settings.indices)}


def model_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    """Yield what is another model: its weights where both are known, else its files, else its name."""
    was, found = then.get("model") or {}, now["model"]
    for key in ("fingerprint", "files"):
        prints = was.get(key), found.get(key)
        if None not in prints:
            if prints[0] != prints[1]:
                yield Difference("the model", _model(was, key), _model(found, key))
            return
    if _named(was) and _named(found) and was["id"] != found["id"]:
        yield Difference("the model", was["id"], found["id"])


def same_precision(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether fingerprints can tell the two models apart: packed and float16 weights are digested as they are held."""
    was, found = then.get("model") or {}, now["model"]
    unpacked = was.get("quantization") is None and found.get("quantization") is None
    return unpacked and "float16" not in (was.get("dtype"), found.get("dtype"))


def stack_difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> Difference | None:
    """Return whether another stack of layers of a model is meant, by its path.

    One path may be the end of the other, since heads put names before it; and equal fingerprints are of equal layers.
    """
    was, found = then.get("layers_path"), now["layers_path"]
    if not isinstance(was, str) or was == found or was.endswith(f".{found}") or found.endswith(f".{was}"):
        return None
    prints = (then.get("model") or {}).get("fingerprint"), now["model"].get("fingerprint")
    return None if prints[0] is not None and prints[0] == prints[1] else Difference("the stack of layers", was, found)


def target_difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> Difference | None:
    """Return whether LoRA adapts other modules; `all-linear` may stand for any list, so it is compared with none."""
    was, found = then.get("target_modules"), now["target_modules"]
    unknown = None in (was, found) or "all-linear" in (was, found)
    return None if unknown or was == found else Difference("`target_modules`", was, found)


def data_difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> Difference | None:
    """Return whether other data are there, or are read otherwise, where both are known and came in the same way."""
    was, found = then.get("data") or {}, now["data"] or {}
    if was.get("read") != found.get("read"):
        return None
    prints = was.get("digest"), found.get("digest")
    if (None not in prints and prints[0] != prints[1]) or (None in prints and was.get("name") != found.get("name")):
        return Difference("the data", _data(was), _data(found))
    changed = [name for name in READ_BY if name in was and name in found and was[name] != found[name]]
    if changed:
        return Difference("the reading of the data", *({name: held[name] for name in changed} for held in (was, found)))
    return None


def setting_differences(then: Mapping[str, Any], now: Mapping[str, Any], unread: set[str]) -> Iterator[Difference]:
    """Yield the settings that both records know and that differ, but for those that the choice did not read."""
    was, found = then.get("settings") or {}, now["settings"]
    for name in was.keys() & found.keys() - unread:
        if was[name] != found[name]:
            yield Difference(f"`{name}`", was[name], found[name])


def unread_settings(strategy: str, score: str | None, cards: tuple[str, ...]) -> set[str]:
    """Return the settings that a placement chosen in this way did not depend on."""
    scored = score is not None or bool(cards)
    unread = set() if scored else set(PROBE)
    if strategy != "auto":
        unread |= AUTO
    if strategy in WITHOUT_CHANCE and not scored:
        unread.add("random_seed")
    return unread


def differences(then: Mapping[str, Any], now: Mapping[str, Any], unread: set[str]) -> list[Difference]:
    """Return everything by which two records differ, but for versions and date.

    A fingerprint is of the model's stack, so where the stack is another one, that says it.
    """
    stack = stack_difference(then, now)
    others = (target_difference(then, now), data_difference(then, now))
    return [
        *(model_differences(then, now) if stack is None else [stack]),
        *(found for found in others if found is not None),
        *sorted(setting_differences(then, now, unread), key=lambda found: found.field),
    ]


def _named(model: Mapping[str, Any]) -> bool:
    """Whether the model has a name of its own; one made from a configuration is called by its class."""
    return bool(model.get("id")) and model["id"] != model.get("architecture")


def _model(model: Mapping[str, Any], key: str) -> str:
    return f"{model.get('id')} (weights {model[key][:12]})"


def _data(data: Mapping[str, Any]) -> str:
    size = "" if data.get("rows") is None else f"{data['rows']} rows, "
    name = f"{data['name']}, " if data.get("name") else ""
    return f"{name}{size}digest {str(data['digest'])[:12]}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and " " in value else repr(value)
