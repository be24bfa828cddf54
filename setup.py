"""Packs `recipes/` into the wheel as `layercard/recipes`; everything else stands in pyproject.toml.

An editable install packs nothing: there the library reads `recipes/` where it is.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

RECIPES = Path(__file__).parent / "recipes"
LEFT_OUT = ("*.py", "__pycache__", ".*")


class BuildWithRecipes(build_py):
    """Copies the recipes beside the modules."""

    def run(self) -> None:
        """Build the modules, then copy; what an earlier build left is removed first."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "layercard" / "recipes"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(RECIPES, target, ignore=shutil.ignore_patterns(*LEFT_OUT))


setup(cmdclass={"build_py": BuildWithRecipes})
