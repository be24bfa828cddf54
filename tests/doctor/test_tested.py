"""The releases that `layercard doctor` calls tested are those that the packages and the Makefile name."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from layercard.doctor.tested import HOSTS, NEEDED, TESTED, Releases
from layercard.doctor.versions import compared

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def least(package: str) -> str:
    """The oldest release that a pyproject file asks for."""
    file = ROOT / ("plugins/layercard-trl/pyproject.toml" if package == "trl" else "pyproject.toml")
    (found,) = (
        line.removeprefix(f"{package}>=")
        for line in tomllib.loads(file.read_text(encoding="utf-8"))["project"]["dependencies"]
        if line.startswith(f"{package}>=")
    )
    return found


@pytest.mark.parametrize("package", [*NEEDED, "trl"])
def test_ranges_are_those_of_pyproject_and_makefile(package: str) -> None:
    newest = re.search(rf"\b{package}==([\d.]+)", MAKEFILE)
    assert newest is not None
    assert TESTED[package] == Releases(least(package), newest[1])


def test_axolotls_releases_are_those_that_have_environments() -> None:
    found = [re.search(rf"^{name} := ([\d.]+)$", MAKEFILE, re.MULTILINE) for name in ("AXOLOTL", "AXOLOTL_NEXT")]
    assert TESTED["axolotl"] == Releases(*(match[1] for match in found if match is not None))
    assert set(TESTED) == {*NEEDED, *HOSTS}


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ("0.17.9", "failed"),
        ("0.18", "ok"),
        ("0.18.0.dev0", "failed"),
        ("0.21.2", "ok"),
        ("0.21.9+cpu", "ok"),
        ("0.22.0", "warning"),
        ("1.0", "warning"),
        ("unknown", "warning"),
    ],
)
def test_a_release_stands_as_its_number_says(version: str, status: str) -> None:
    check = compared("peft", version, Releases("0.18", "0.21.2"))
    assert check.status == status
    assert (check.advice is None) is (status == "ok")
