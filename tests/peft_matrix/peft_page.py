"""docs/peft.md: what stands above its tables, and their rows."""

from __future__ import annotations

from dataclasses import astuple, replace

from peft_cases import CASES
from peft_stages import Outcome
from refused_cases import REFUSED

from table_page import ROOT, Table, TablePage

VERSIONS = {"transformers": "5.24.", "peft": "0.21."}
WORKS = """# PEFT

What was tried with tiny models (Llama where no other is named), PEFT 0.21 and transformers 5.24; every row is written by a
test, which fails where it no longer holds. `lora_layers` chose the last two of four layers.

## What works

- **probe** is `exact` where each example's gradient in a padded batch is that of autograd through PEFT's adapters on the
  example alone, module by module; what the probe said of its numbers stands behind.
- **gradient entry** is `moved` where backpropagation ended at the lowest adapted layer, with gradient checkpointing; otherwise
  it says why not. Weights after three steps are those of the same adapter with PEFT's own way of naming layers.
- **prefix cache** is `used` where cached hidden states were used; otherwise it says why they were not.
- **reloaded** compares logits, to 1e-6, with those of the saved adapter on a fresh model, read by PEFT alone.
"""
COLUMNS = ("adapter", "as written", "probe", "gradient entry", "prefix cache", "reloaded")
REFUSES = """## What is refused

Each is an error of `place` before any training, and leaves the model as it was.
"""
RELEASES = ("0.18.0", "0.20.0", "0.21.2")
READ = """## Which releases of PEFT read what is saved

An adapter of random values on the placed layers was saved by PEFT 0.21 and read by each release, installed for itself beside the
same transformers: `same` where it adapts the same modules and gives the same logits, to 1e-6.
"""
PAGE = TablePage(
    ROOT / "docs" / "peft.md",
    {
        "works": Table(WORKS, COLUMNS, list(CASES)),
        "read": Table(READ, ("saved adapter", *RELEASES), [name for name, case in CASES.items() if not case.packages]),
        "refused": Table(REFUSES, ("refused adapter", "as written", "message"), list(REFUSED)),
    },
)


def check_row(name: str, outcome: Outcome) -> None:
    """Assert that the page says this of the case, or write it there."""
    cells = outcome if outcome.cache != outcome.entry else replace(outcome, cache="not used, for the same reason")
    PAGE.check_row("works", name, [CASES[name].written, *astuple(cells)])


def check_refusal(name: str, message: str) -> None:
    """The same of a case that is refused."""
    PAGE.check_row("refused", name, [REFUSED[name].written, message])


def check_reading(name: str, readings: list[str]) -> None:
    """The same of how each release reads a saved adapter."""
    PAGE.check_row("read", name, readings)
