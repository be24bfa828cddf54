"""Of an encoder and a decoder the one that is named is placed; the other's adapters go, or stay and are said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel

from layercard import place
from layercard.errors import LayersNotFoundError
from shapes import ENCODER_DECODERS, adapted_modules, pair_trainer, seeded
from trainers import equal, trained

STACKS = ("encoder", "decoder")
CHECKPOINTING: dict[str, dict[str, Any]] = {
    "none": {},
    "plain": {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}},
    "reentrant": {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
}


def stack_of(name: str) -> str:
    return "encoder" if "encoder." in name else "decoder"


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_the_error_names_the_decoder_first(family: str, tmp_path: Path) -> None:
    with pytest.raises(LayersNotFoundError, match=r"for example `layers_path: [a-z.]*decoder\."):
        place(pair_trainer(tmp_path, family), lora_layers="last")


@pytest.mark.parametrize("placed", STACKS)
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_the_other_stacks_adapters_are_taken_out(family: str, placed: str, tmp_path: Path) -> None:
    build, _, paths = ENCODER_DECODERS[family]
    trainer = pair_trainer(tmp_path, family)
    run = place(trainer, lora_layers="last", layers_path=paths[placed], guard=False)
    assert {stack_of(name) for name in adapted_modules(trainer.model)} == {placed}
    trainer.train()
    assert run.report.gradient_entry["moved"]
    assert run.report.backward_layers == run.layers == (2,)
    (other,) = run.report.elsewhere
    assert other["where"].endswith(next(stack for stack in STACKS if stack != placed))
    assert not other["trains"]
    trainer.save_model(tmp_path / "saved")
    again = PeftModel.from_pretrained(seeded(build), tmp_path / "saved")
    assert adapted_modules(again) == adapted_modules(trainer.model)


@pytest.mark.parametrize("kind", CHECKPOINTING)
@pytest.mark.parametrize("others", ["shed", "keep"])
@pytest.mark.parametrize("placed", STACKS)
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_moving_the_entry_changes_no_weight(family: str, placed: str, others: str, kind: str, tmp_path: Path) -> None:
    """An encoder that trains runs below every layer of its decoder; a decoder runs above every layer of its encoder."""
    if family == "whisper" and kind == "reentrant":
        pytest.skip("a reentrant checkpoint of sounds, which need no gradient, gives the encoder none")
    weights = []
    for moved in (True, False):
        trainer = pair_trainer(tmp_path / str(moved), family, **CHECKPOINTING[kind])
        path = ENCODER_DECODERS[family][2][placed]
        settings = {"layers_path": path, "other_stacks": others, "gradient_entry": moved, "guard": False}
        run = place(trainer, lora_layers=[2], **settings)
        trainer.train()
        weights.append(trained(trainer.model))
        if moved and (placed, others) == ("decoder", "keep"):
            assert not run.report.gradient_entry["moved"]
        if moved and placed == "encoder":
            assert run.report.gradient_entry["moved"] == (kind != "reentrant")
    assert equal(*weights)


@pytest.mark.parametrize("choice", ["auto", "last", [1, 2]])
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_what_needs_no_score_works_whatever_the_model_reads(family: str, choice: Any, tmp_path: Path) -> None:
    path = ENCODER_DECODERS[family][2]["encoder"]
    trainer = pair_trainer(tmp_path, family)
    run = place(trainer, lora_layers=choice, layers_path=path, guard=False)
    trainer.train()
    assert run.layers == ((1, 2) if isinstance(choice, list) else (2,))
