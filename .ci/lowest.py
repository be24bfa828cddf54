"""Prints, as pip's constraints, the lowest releases that the packages in this repository ask for: `name==floor`, one a line.

torch is left out: it is installed first, as a wheel for CPUs, of which few releases are to be had.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = ("pyproject.toml", "plugins/layercard-trl/pyproject.toml")
TOOLS = "dev"
"""The extra that only tests and checks need."""
BESIDE = {
    "huggingface_hub": "1.16.1",
    "fsspec": "2026.2.0",
    "typer": "0.23.1",
    "typer-slim": "0.23.1",
    "pandas": "3.0.6",
}
"""The newest releases that those go with; nobody here asks for them, and without this pip searches for minutes."""
FLOOR = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?>=([0-9.]+)")


def required(project: dict[str, object]) -> Iterator[str]:
    """Yield what a project asks for, its extras included."""
    dependencies, extras = project["dependencies"], project.get("optional-dependencies", {})
    assert isinstance(dependencies, list)
    assert isinstance(extras, dict)
    yield from dependencies
    for name, extra in extras.items():
        yield from () if name == TOOLS else extra


def floors() -> dict[str, str]:
    """Return the lowest release by package; where two files ask for one package, the higher."""
    found: dict[str, str] = {}
    for file in FILES:
        for requirement in required(tomllib.loads((ROOT / file).read_text(encoding="utf-8"))["project"]):
            match = FLOOR.fullmatch(requirement)
            if match is not None and match[1] != "torch":
                found[match[1]] = max(found.get(match[1], "0"), match[2], key=release)
    return found


def release(version: str) -> tuple[int, ...]:
    """Return a release's numbers, to compare by."""
    return tuple(map(int, version.split(".")))


if __name__ == "__main__":
    print("\n".join(f"{name}=={version}" for name, version in sorted((BESIDE | floors()).items())))
