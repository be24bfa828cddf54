"""Whether a run can write its placement.json and report.json where the user trains, and read them back."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layercard.doctor.check import Check, failed, ok
from layercard.placement.placement import LayerPlacement
from layercard.report.files import NAME as REPORT
from layercard.report.files import load_report

PLACEMENT = "placement.json"


@contextmanager
def folder_for(output: Path) -> Iterator[tuple[Path, OSError | None]]:
    """Yield an empty folder where a run into `output` would write, taken away afterwards.

    Where none can be made there, it is one of the system's, and the error is beside it.
    """
    there = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    try:
        made, problem = tempfile.TemporaryDirectory(dir=there, prefix=".layercard-doctor-"), None
    except OSError as error:
        made, problem = tempfile.TemporaryDirectory(prefix="layercard-doctor-"), error
    with made as folder:
        yield Path(folder), problem


def check_files(folder: Path, output: Path, problem: OSError | None) -> Iterator[Check]:
    """Yield whether the toy run left both files in `folder`, whole, and whether that is where the user trains."""
    if problem is not None:
        yield failed(
            "output folder",
            f"{output.absolute()}: {problem.strerror or problem}",
            "Give a folder that you may write into: `layercard doctor --output-dir FOLDER`.",
        )
        return
    placement = LayerPlacement.load(folder / PLACEMENT)
    report = load_report(folder / REPORT)
    kept = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    if placement.layers != report.layers or report.partial or not kept["versions"]:
        yield failed("output folder", "placement.json and report.json do not agree", "Report this as a bug.")
        return
    where = "this folder" if output == Path() else f"{output}"
    yield ok("output folder", f"placement.json and report.json of the toy run were written in {where}")
