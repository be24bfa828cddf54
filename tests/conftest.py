"""What holds for the tests of every folder here."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import settings

from trl_names import uses_trl

settings.register_profile("fixed", derandomize=True)
settings.register_profile("search", derandomize=False, print_blob=True)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "fixed")
)  # a change is judged by the same examples as the last

IMPORTS_TRL = re.compile(r"""^\s*(from|import) trl\b|importorskip\(["']trl["']\)""", re.MULTILINE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Excuse TRL's own use of old names in the files that run TRL, and nowhere else."""
    excused = {path for path in {item.path for item in items} if IMPORTS_TRL.search(path.read_text(encoding="utf-8"))}
    for item in items:
        if item.path in excused and Path(__file__).parent in item.path.parents:
            item.add_marker(uses_trl)
