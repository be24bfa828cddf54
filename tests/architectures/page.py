"""Keeps docs/architectures.md as it was tried: every test writes or compares the row of its model type."""

from __future__ import annotations

import os
import re
from dataclasses import astuple
from importlib.metadata import version
from pathlib import Path

from registry import ARCHITECTURES
from stages import Outcome

from forms_table import WRITE

PATH = Path(__file__).parents[2] / "docs" / "architectures.md"
VERSIONS = {"transformers": "5.24.", "peft": "0.21."}
HEADER = """# Architectures

What was tried with tiny models made from the configuration classes of transformers 5.24, with PEFT 0.21 and adapters on all
linear modules; every row is written by a test, which fails where it no longer holds.

- **probe** is `exact` where each example's gradient in a padded batch is that of autograd through PEFT's adapters on the
  example alone, module by module; what the probe said of its numbers stands behind.
- **gradient entry** is `moved` where backpropagation ended at the lowest adapted layer, with gradient checkpointing where the
  model has it; where it says why not, all layers ran backward. Weights after three steps are those of training by hand.
- **prefix cache** is `used` where cached hidden states were used; otherwise it says why they were not. Dropout was 0.
- **reloaded** compares logits, to 1e-6, with those of the saved adapter on a fresh model, read by PEFT alone.

Of models with several stacks the named one was placed, by `layers_path`; adapters in towers were taken out.

| model type | kind | layers | probe | gradient entry | prefix cache | reloaded |
|---|---|---|---|---|---|---|
"""
CLASS = re.compile(r"\(`base_model[^)]*\)")


def is_of_this_environment() -> bool:
    """Whether the installed releases are those that the page is about; others know other model types."""
    return all(version(package).startswith(release) for package, release in VERSIONS.items())


def row(name: str, outcome: Outcome | str) -> str:
    """Return the line of the table."""
    kind = ARCHITECTURES[name].kind
    if isinstance(outcome, str):
        return f"| `{name}` | {kind} | refused: {_short(outcome)} | | | | |"
    cells = [_short(cell) for cell in astuple(outcome)]
    return f"| `{name}` | {kind} | {' | '.join(cells)} |"


def _short(cell: str) -> str:
    """Parameter names are left out."""
    return " ".join(CLASS.sub("", cell).split()).replace(" .", ".").replace("|", "or")


def check_row(name: str, line: str) -> None:
    """Assert that the page holds this line, or write it there."""
    lines = rows()
    if os.environ.get(WRITE):
        lines[name] = line
        kept = [lines[known] for known in ARCHITECTURES if known in lines]
        PATH.write_text(HEADER + "\n".join(kept) + "\n", encoding="utf-8")
    assert rows().get(name) == line, f"docs/architectures.md is stale. Run this test with {WRITE}=1 and look at it."


def rows() -> dict[str, str]:
    """The lines of the page's table by model type."""
    text = PATH.read_text(encoding="utf-8") if PATH.exists() else ""
    return {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
