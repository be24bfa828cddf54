"""The scorer that CONTRIBUTING writes as an example is one."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

from layercard.testing import check_scorer

GIVEN = """
from dataclasses import dataclass
from layercard.probing.statistics import LayerStatistics, Need
from layercard.scores.base import LayerScores
"""
"""What the example leaves to its reader."""


def test_the_worked_change_passes_the_checks_of_scorers() -> None:
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(GIVEN + textwrap.dedent(block), names)
    (scorer,) = names["SCORERS"]
    check_scorer(scorer)
