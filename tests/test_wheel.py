"""The wheel and the source archive as they are built: the shipped cards and the schema are in them, and load."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import layercard
from layercard.cards.library import shipped_dir

ROOT = Path(layercard.__file__).parents[2]
SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "src", "recipes")
SHIPPED = {path.relative_to(ROOT).as_posix() for path in shipped_dir().glob("*/*.json")}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the distribution is built from, so that building leaves nothing in the repository."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(sources: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", "dist", "."], cwd=sources, check=True)
    (built,) = (sources / "dist").glob("*.whl")
    return built


def test_the_wheel_holds_the_recipes_and_the_schema_and_no_scripts(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"layercard/{path}" for path in SHIPPED} <= names
    assert {"layercard/cards/layer_card.schema.json", "layercard/recipes/README.md", "layercard/py.typed"} <= names
    templates = Path(layercard.__file__).parent / "report" / "page" / "templates"
    assert {f"layercard/report/page/templates/{path.name}" for path in templates.iterdir()} <= names
    assert {"layercard/recipes/trl/smollm2-135m-cpu.yaml"} <= names
    assert not [name for name in names if name.startswith("layercard/recipes/") and name.endswith((".py", ".pyc"))]
    assert not [
        name for name in names if name.split("/")[0] not in {"layercard", wheel.name.split("-py3")[0] + ".dist-info"}
    ]


def test_cards_of_the_installed_wheel_are_listed_and_load(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(installed)]
    subprocess.run([*pip, str(wheel)], check=True)
    code = (
        "import json, sys, layercard\n"
        "from layercard.cards.library import Library, shipped_dir\n"
        "from layercard.plugins import build_manager, card_folders\n"
        "library = Library.open(card_folders(build_manager(entry_points=False)))\n"
        "assert not library.rejected, library.rejected\n"
        "print(json.dumps([layercard.__file__, str(shipped_dir()), [card.key for card in library.cards]]))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(installed), "LAYERCARD_CARDS": str(tmp_path / "none")}
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    module, folder, keys = json.loads(done.stdout)
    assert Path(module).is_relative_to(installed)
    assert Path(folder) == installed / "layercard" / "recipes" / "cards"
    assert [f"recipes/cards/{key}.json" for key in keys] == sorted(SHIPPED)


def test_the_editable_install_finds_the_same_cards_in_the_repository() -> None:
    assert shipped_dir() == ROOT / "recipes" / "cards"
    assert SHIPPED


def test_the_source_archive_holds_what_the_wheel_is_built_from(sources: Path) -> None:
    code = "import setuptools.build_meta as backend; print(backend.build_sdist('dist'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=sources, capture_output=True, text=True, check=True)
    archive = sources / "dist" / done.stdout.splitlines()[-1]
    with tarfile.open(archive) as opened:
        names = {name.split("/", 1)[1] for name in opened.getnames() if "/" in name}
    assert names >= SHIPPED
    assert {"setup.py", "recipes/README.md", "src/layercard/cards/layer_card.schema.json"} <= names


def test_what_an_earlier_build_left_is_not_packed(sources: Path, wheel: Path) -> None:
    stale = sources / "build" / "lib" / "layercard" / "recipes" / "cards" / "old" / "card.json"
    stale.parent.mkdir(parents=True, exist_ok=True)
    stale.write_text("{}")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", "again", "."], cwd=sources, check=True)
    (built,) = (sources / "again").glob("*.whl")
    assert "layercard/recipes/cards/old/card.json" not in zipfile.ZipFile(built).namelist()
