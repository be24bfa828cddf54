"""docs/architectures.md: what stands above its table, and the row of a model type."""

from __future__ import annotations

import re
from dataclasses import astuple

from registry import ARCHITECTURES
from stages import Outcome

from table_page import ROOT, Table, TablePage

VERSIONS = {"transformers": "5.24.", "peft": "0.21."}
ABOVE = """# Architectures

What was tried with tiny models made from the configuration classes of transformers 5.24, with PEFT 0.21 and adapters on all
linear modules; every row is written by a test, which fails where it no longer holds.

- **probe** is `exact` where each example's gradient in a padded batch is that of autograd through PEFT's adapters on the
  example alone, module by module; what the probe said of its numbers stands behind.
- **gradient entry** is `moved` where backpropagation ended at the lowest adapted layer, with gradient checkpointing where the
  model has it; where it says why not, all layers ran backward. Weights after three steps are those of training by hand.
- **prefix cache** is `used` where cached hidden states were used; otherwise it says why they were not. Dropout was 0.
- **reloaded** compares logits, to 1e-6, with those of the saved adapter on a fresh model, read by PEFT alone.

Of models with several stacks the named one was placed, by `layers_path`; adapters in towers were taken out.
"""
COLUMNS = ("model type", "kind", "layers", "probe", "gradient entry", "prefix cache", "reloaded")
PAGE = TablePage(ROOT / "docs" / "architectures.md", {"tried": Table(ABOVE, COLUMNS, list(ARCHITECTURES))})
CLASS = re.compile(r"\(`base_model[^)]*\)")


def check_row(name: str, outcome: Outcome | str) -> None:
    """Assert that the page says this of the model type, or write it there; parameter names are left out."""
    cells = [f"refused: {outcome}", *[""] * 4] if isinstance(outcome, str) else astuple(outcome)
    PAGE.check_row("tried", name, [ARCHITECTURES[name].kind, *(CLASS.sub("", cell) for cell in cells)])
