from __future__ import annotations

from pathlib import Path

import pytest

from layercard_trl.sft import check, parse

FOLDER = Path(__file__).parents[3] / "recipes" / "trl"
RECIPES = sorted(FOLDER.glob("*.yaml"))


def test_there_are_recipes():
    assert len(RECIPES) >= 2


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_parses_with_the_real_parser(path):
    flags = (
        path.read_text(encoding="utf-8").splitlines()[0].partition(path.name)[2].split()
    )  # of the command that it names
    values, from_file, from_line = parse(["--config", str(path), "--use_cpu", *flags])
    assert not from_file
    assert not from_line
    assert check(values) is not None


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_first_line_is_the_command(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(f"# layercard trl-sft --config recipes/trl/{path.name}")
