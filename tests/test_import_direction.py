"""Data flow one way: a room imports itself and rooms before it, held with `ast`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import layercard

ROOT = Path(layercard.__file__).parent
ORDER = [
    ["errors"],
    ["sizes", "random_state", "files", "versions", "precision", "progress"],
    ["settings", "hookspecs", "plugins", "builtins", "records"],
    ["data", "anatomy"],
    ["probing"],
    ["scores"],
    ["cards"],
    ["placement"],
    ["cost", "quality"],
    ["prefix"],
    ["hosts", "report"],
    ["pipeline"],
    ["study", "testing"],
    ["cli"],
    ["__main__"],
]
"""Rooms in the order in which work passes through them; those in one line do not know each other."""
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
NAMES_EVERY_STAGE = {"hookspecs", "builtins"}
"""Hook signatures name every stage's types; built-ins import inside the functions that register them."""
FILES = sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported(path: Path) -> Iterator[str]:
    """Yield the dotted names of the layercard modules that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "layercard":
            yield from (f"layercard.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides which room it names"
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def rooms_imported(path: Path) -> set[str]:
    parts = [name.split(".") for name in imported(path)]
    return {p[1] for p in parts if p[0] == "layercard" and len(p) > 1 and p[1] in LEVEL}


def test_every_room_has_its_place_in_the_order() -> None:
    rooms = {room_of(path) for path in FILES} - {"__init__"}
    assert rooms <= set(LEVEL), f"no place in the order: {sorted(rooms - set(LEVEL))}"


@pytest.mark.parametrize("room", sorted(set(LEVEL) - NAMES_EVERY_STAGE))
def test_a_room_imports_only_itself_and_earlier_ones(room: str) -> None:
    for path in FILES:
        if room_of(path) == room:
            for other in rooms_imported(path) - {room}:
                assert (
                    LEVEL[other] < LEVEL[room]
                    or {room, other} == {"plugins", "settings"}
                    or ((room, other) in {("plugins", "hookspecs"), ("plugins", "builtins")})
                ), f"{path.relative_to(ROOT)} imports {other}, which comes after {room}"


def test_names_of_every_stage_are_imported_lazily_or_for_types_alone() -> None:
    for name in NAMES_EVERY_STAGE:
        tree = ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("layercard"):
                assert node.module == "layercard.hookspecs", f"{name}.py imports {node.module} when it is imported"


def test_no_host_is_imported_by_the_core() -> None:
    for path in FILES:
        hosts = {name.split(".")[0] for name in imported(path)} & {
            "trl",
            "axolotl",
            "layercard_trl",
            "layercard_axolotl",
        }
        assert not hosts, f"{path.relative_to(ROOT)} imports {hosts}"
