"""Reads and writes report.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from layercard.cost.speedup import SpeedupReport
from layercard.errors import LayercardError
from layercard.placement.placement import write_json

NAME = "report.json"


def save_report(report: SpeedupReport, directory: Path) -> Path:
    """Write report.json into `directory`, atomically, and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / NAME
    write_json(path, report.to_dict())
    return path


def find_report(path: Path) -> Path:
    """Return the report.json of a run's output folder, or the file that was named; raise `LayercardError` without one."""
    file = path / NAME if path.is_dir() else path
    if not file.is_file():
        raise LayercardError(
            f"{path} holds no {NAME}. Give the output folder of a run that layercard placed; the file is written there when "
            "training begins."
        )
    return file


def load_report(path: Path) -> SpeedupReport:
    """Read a report.json; raise `LayercardError` where it cannot be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LayercardError(
            f"{path} cannot be read as a report ({error}). Give the report.json of a placed run."
        ) from None
    if not isinstance(values, dict):
        raise LayercardError(f"{path} holds a {type(values).__name__}; a report is a JSON object.")
    try:
        report = SpeedupReport.from_dict(values)
        _check_kinds(report)
        return report
    except (KeyError, TypeError, AttributeError) as error:
        raise LayercardError(
            f"{path} is no report of layercard ({type(error).__name__}: {error}). Give the report.json of a placed run."
        ) from None


def _check_kinds(report: SpeedupReport) -> None:
    """Raise `TypeError` where a report that somebody edited holds another kind of value than is rendered."""
    for field in fields(report):
        value, kind = getattr(report, field.name), str(field.type)
        if value is None and kind.endswith("None"):
            continue
        sound = True
        if kind.startswith("Mapping"):
            sound = isinstance(value, Mapping)
        elif kind.startswith(("int", "float")):
            sound = isinstance(value, int | float) and not isinstance(value, bool)
        if not sound:
            raise TypeError(f"`{field.name}` is {value!r}")
    if report.layers is None or not all(layer in range(report.num_layers) for layer in report.layers):
        raise TypeError(f"`layers` is {report.layers!r} of {report.num_layers}")
