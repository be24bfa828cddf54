"""Data flow one way: a room imports itself and rooms before it, and no files import each other in a circle; held with `ast`.

Imports inside functions count as well. Those under `TYPE_CHECKING` are free: at run time they are not there.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import layercard

ROOT = Path(layercard.__file__).parent
ORDER = [
    ["errors"],
    ["registry", "sizes", "random_state", "files", "versions", "precision", "progress", "ranks"],
    ["settings", "hookspecs", "records"],
    ["data", "anatomy"],
    ["probing"],
    ["scores"],
    ["cards"],
    ["placement"],
    ["cost", "quality"],
    ["prefix"],
    ["hosts", "report"],
    ["builtins"],
    ["plugins"],
    ["pipeline.before"],
    ["pipeline.placed_run"],
    ["pipeline.during"],
    ["pipeline.place", "pipeline.probe"],
    ["study", "testing"],
    ["doctor"],
    ["cli"],
    ["__main__"],
]
"""Rooms in the order in which work passes through them; those in one line do not know each other."""
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
DOORS = ("pipeline.place", "pipeline.probe", "cli")
"""Who asks plugins, and hands down what they supply."""


def name_of(path: Path) -> str:
    """The dotted name of a file's module, without `layercard`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def room_of(module: str) -> str:
    """The room of a module; the rooms of `pipeline/` are told apart."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "pipeline" else parts[0]


def at_run_time(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Every node, at any depth, but for what stands under `TYPE_CHECKING`."""
    for node in nodes:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from at_run_time(node.orelse)
            continue
        yield node
        yield from at_run_time(ast.iter_child_nodes(node))


def imported(path: Path) -> set[str]:
    """The dotted names of what a file imports; a module where a name stands for one."""
    found = set()
    for node in at_run_time(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides which room it names"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full.removeprefix("layercard.") in FILES else node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def modules_imported(module: str) -> set[str]:
    """The modules of layercard that `module` imports, but itself."""
    names = {name.removeprefix("layercard.") for name in imported(FILES[module]) if name.startswith("layercard.")}
    return (names & set(FILES)) - {module}


def test_every_room_has_its_place_in_the_order() -> None:
    rooms = {room_of(module) for module in FILES} - {"__init__", "layercard", "pipeline"}
    assert rooms == set(LEVEL), f"no place in the order, or no room: {sorted(rooms ^ set(LEVEL))}"


@pytest.mark.parametrize("room", sorted(LEVEL))
def test_a_room_imports_only_itself_and_earlier_ones(room: str) -> None:
    for module in (module for module in FILES if room_of(module) == room):
        for other in {room_of(name) for name in modules_imported(module)} & set(LEVEL) - {room}:
            assert LEVEL[other] < LEVEL[room], f"{module} imports {other}, which comes after {room}"


def test_no_files_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter({module: modules_imported(module) for module in FILES}).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_a_lazy_import_counts_and_one_for_types_does_not() -> None:
    code = "if TYPE_CHECKING:\n    import free\nelse:\n    import early\ndef f():\n    from late import name\n"
    nodes = list(at_run_time(ast.parse(code).body))
    assert [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names] == ["early"]
    assert [node.module for node in nodes if isinstance(node, ast.ImportFrom)] == ["late"]


def test_below_the_doors_nothing_knows_the_plugin_manager() -> None:
    knowing = {room_of(module) for module in FILES if "plugins" in modules_imported(module)}
    assert knowing <= set(DOORS)


def test_no_host_is_imported_by_the_core() -> None:
    for module, path in FILES.items():
        hosts = {name.split(".")[0] for name in imported(path)} & {
            "trl",
            "axolotl",
            "layercard_trl",
            "layercard_axolotl",
        }
        assert not hosts, f"{module} imports {hosts}"
