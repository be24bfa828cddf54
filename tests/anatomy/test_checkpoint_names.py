"""Checkpointing is switched on and read under the names of the installed transformers, without a warning."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainingArguments

from layercard.anatomy.checkpoint_names import checkpointing_arguments, current_name, is_checkpointing


@pytest.mark.parametrize("on", [True, False])
def test_what_is_written_is_what_a_trainer_reads(on: bool, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        args = TrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, **checkpointing_arguments(on, {"use_reentrant": False})
        )
        assert is_checkpointing(args) is on
    assert (vars(args)[f"{current_name()}_kwargs"] == {"use_reentrant": False}) is on


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"gradient_checkpointing": True}, True),
        ({"gradient_checkpointing": False}, False),
        ({"activation_checkpointing": True, "gradient_checkpointing": False}, True),
        ({"activation_checkpointing": False, "gradient_checkpointing": True}, False),
        ({}, False),
    ],
    ids=str,
)
def test_the_new_name_decides_where_both_are_there(values: dict[str, bool], expected: bool) -> None:
    assert is_checkpointing(SimpleNamespace(**values)) is expected
