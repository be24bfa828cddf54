"""The public face: a sorted `__all__`, every name there, and an import that brings in no torch."""

from __future__ import annotations

import subprocess
import sys

import layercard


def test_all_is_sorted_and_complete() -> None:
    assert layercard.__all__ == sorted(layercard.__all__)
    assert dir(layercard) == layercard.__all__


def test_every_exported_name_resolves_to_what_it_names() -> None:
    for name in set(layercard.__all__) - {"__version__", "hookimpl"}:
        assert getattr(layercard, name).__name__ == name
    assert layercard.hookimpl.project_name == "layercard"


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(layercard, "nothing")


def test_the_stable_names_are_there() -> None:
    assert {"place", "probe", "PlacementSettings", "LayerPlacement", "LayercardError"} <= set(layercard.__all__)


def test_importing_it_and_its_settings_brings_in_no_torch() -> None:
    code = (
        "import sys, layercard, layercard.settings, layercard.plugins, layercard.placement.choose\n"
        "layercard.plugins.strategies(layercard.plugins.build_manager(entry_points=False))\n"
        "heavy = {'torch', 'transformers', 'peft', 'trl', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
