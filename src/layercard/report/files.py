"""Reads and writes report.json."""

from __future__ import annotations

import json
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
        return SpeedupReport.from_dict(values)
    except (KeyError, TypeError, AttributeError) as error:
        raise LayercardError(
            f"{path} is no report of layercard ({type(error).__name__}: {error}). Give the report.json of a placed run."
        ) from None
