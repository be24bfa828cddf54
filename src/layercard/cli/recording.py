"""Makes the record of what a command chose layers for, and says how a saved placement's record differs from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from layercard.hosts.digest import file_facts, files_digest
from layercard.pipeline.before.record import bare_path, facts_without_weights
from layercard.placement.made_for import differences, make_record, unread_settings

if TYPE_CHECKING:
    from layercard.anatomy.layers import LayerStack
    from layercard.cli.examine import Examined
    from layercard.cli.options import DataSource, ModelSource
    from layercard.placement.placement import LayerPlacement
    from layercard.settings import PlacementSettings


WEIGHTS = ("*.safetensors", "*.bin")


def record_of_command(
    model: ModelSource,
    bare: Any,
    stack: LayerStack,
    examined: Examined | None,
    data: DataSource,
    settings: PlacementSettings,
    targets: list[str] | None,
) -> dict[str, Any]:
    """Return the record of a command.

    The weights' fingerprint is None where no score was needed, so that none were loaded; `files` tells local ones apart.
    """
    facts = facts_without_weights(bare, len(stack)) if examined is None else examined.model
    return make_record(
        model=facts | {"files": _files(Path(model.name).expanduser())},
        layers_path=bare_path(stack),
        target_modules="all-linear" if targets is None else targets,
        data=_data(data, model.task),
        settings=settings,
    )


def other_record(saved: LayerPlacement, chosen: LayerPlacement) -> list[str]:
    """Return what a saved placement was chosen for that is otherwise now, a phrase each; none where it has no record."""
    if saved.made_for is None or chosen.made_for is None:
        return []
    unread = unread_settings(chosen.strategy, chosen.score, chosen.cards) | {"lora_layers", "layers_path"}
    return [str(found) for found in differences(saved.made_for, chosen.made_for, unread)]


def _files(folder: Path) -> str | None:
    """Return a digest of a local model's weights, by some blocks of its files; None of a model on the Hub."""
    paths = sorted(path for pattern in WEIGHTS for path in folder.glob(pattern)) if folder.is_dir() else []
    return files_digest(paths) if paths else None


def _data(data: DataSource, task: str | None) -> dict[str, Any] | None:
    """Return what tells the data from others; of a dataset on the Hub its name, of which no digest is known."""
    if data.name is None:
        return None
    path = Path(data.name).expanduser()
    how = {"task": task, "columns": dict(data.columns) or None, "max_length": data.max_length, "split": data.split}
    if path.is_file():
        return file_facts(path) | how
    return {"read": "hub", "name": data.name, "rows": None, "config": data.config, "digest": None} | how
