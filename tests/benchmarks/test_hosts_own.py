"""docs/hosts-own-tests.md is what its kept result makes, and nothing in it fails for a reason of layercard's."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "hosts_own" / "page.py"


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hosts_own_page", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_kept_result_makes(page: ModuleType) -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.rendered()


def test_what_passes_as_it_is_passes_placed_or_is_refused_or_looks_for_adapters_left_out(page: ModuleType) -> None:
    results = page.kept()["results"]
    held = [test for test in results["tests"] if test["held"]]
    assert held
    for test in held:
        for way in results["ways"]:
            assert page.judged(test, way) != page.FAILS, (test["id"], way, test[way]["message"])


def test_a_test_that_asks_for_an_adapter_left_out_fails_by_design(page: ModuleType) -> None:
    cell = {"outcome": "failed", "message": "AttributeError: Linear has no attribute `lora_A`", "placed": 1}
    assert page.verdict(cell) == page.BY_DESIGN
    assert page.verdict({**cell, "placed": 0}) == page.FAILS
    assert page.verdict({**cell, "message": "AssertionError: it has not changed."}) == page.FAILS
