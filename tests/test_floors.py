"""The lowest releases that `make test-lowest` installs are those that the pyproject files ask for."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
TOOLS = "dev"


def asked() -> dict[str, set[Version]]:
    """By package the floors that the core and the TRL plugin name; every requirement has one, or is one of ours."""
    found: dict[str, set[Version]] = {}
    for file in ("pyproject.toml", "plugins/layercard-trl/pyproject.toml"):
        project = tomllib.loads((ROOT / file).read_text(encoding="utf-8"))["project"]
        extras = [text for name, extra in project["optional-dependencies"].items() if name != TOOLS for text in extra]
        for requirement in map(Requirement, [*project["dependencies"], *extras]):
            if requirement.name != "layercard":
                (bound,) = requirement.specifier
                assert bound.operator == ">=", requirement
                found.setdefault(requirement.name, set()).add(Version(bound.version))
    return found


def test_the_constraints_hold_every_floor_but_that_of_torch() -> None:
    printed = subprocess.run([sys.executable, ROOT / ".ci" / "lowest.py"], capture_output=True, text=True, check=True)
    pinned = {name: Version(version) for name, _, version in (line.partition("==") for line in printed.stdout.split())}
    floors = asked()
    assert floors.pop("torch")
    assert floors
    assert {name: pinned[name] for name in floors} == {name: max(versions) for name, versions in floors.items()}


def test_tools_ask_for_no_less_than_what_is_shipped() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    floors = asked()
    for requirement in map(Requirement, project["optional-dependencies"][TOOLS]):
        for floor in floors.get(requirement.name, ()):
            assert requirement.specifier == Requirement(f"{requirement.name}>={floor}").specifier
