"""A vision tower's adapters are taken out or trained, as is said; what trains below the layers is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from layercard import place
from layercard.errors import LayersNotFoundError
from shapes import ATTENTION, VISION_LANGUAGE, adapted_modules, collate, llava, seeded, text_trainer, trainable_in
from tiny import tiny_examples
from trainers import equal, trained

PROJECTORS = {"llava": "multi_modal_projector", "smolvlm": "connector"}
"""Models whose projector lies outside the tower, where it keeps backpropagation from ending in the language layers."""
EVERY_LINEAR = r"model\..*\.(q_proj|k_proj|v_proj|qkv|fc1|fc2|linear_1|linear_2|proj|mlp\.\d|linear_fc\d|up_proj)"


@pytest.mark.parametrize("family", VISION_LANGUAGE)
def test_the_error_names_the_language_layers_first(family: str, tmp_path: Path) -> None:
    build, path, tower = VISION_LANGUAGE[family]
    with pytest.raises(LayersNotFoundError, match=rf"for example `layers_path: model.{path}`") as caught:
        place(text_trainer(tmp_path, build, "all-linear"), lora_layers="last")
    assert tower in str(caught.value)


@pytest.mark.parametrize("family", VISION_LANGUAGE)
def test_naming_the_language_layers_takes_the_tower_out(family: str, tmp_path: Path, capfd: Any) -> None:
    build, path, tower = VISION_LANGUAGE[family]
    trainer = text_trainer(tmp_path, build, "all-linear")
    before = trainable_in(trainer.model, tower)
    run = place(trainer, lora_layers="last", layers_path=path, guard=False)
    assert before > 0
    assert trainable_in(trainer.model, tower) == 0
    said = " ".join(capfd.readouterr().err.split())
    assert f"Adapters of `{tower}`" in said
    assert "were taken out" in said
    with run.narrowing.all_layers():  # the baseline is what the configuration would have trained
        assert trainable_in(trainer.model, tower) == before
    assert trainable_in(trainer.model, tower) == 0
    trainer.train()
    shed = [part for part in run.report.elsewhere if not part["trains"]]
    assert [part["where"] for part in shed] == [tower]
    projector = PROJECTORS.get(family)
    assert run.report.gradient_entry["moved"] == (projector is None)
    if projector is not None:
        assert projector in run.report.gradient_entry["obstacle"]
        assert f"Backpropagation does not end at layer {run.layers[0]}" in said


@pytest.mark.parametrize("family", VISION_LANGUAGE)
def test_the_tower_can_be_kept_and_is_named_with_its_share(family: str, tmp_path: Path, capfd: Any) -> None:
    build, path, tower = VISION_LANGUAGE[family]
    trainer = text_trainer(tmp_path, build, "all-linear")
    before = trainable_in(trainer.model, tower)
    run = place(trainer, lora_layers="last", layers_path=path, other_stacks="keep", guard=False)
    assert trainable_in(trainer.model, tower) == before
    said = " ".join(capfd.readouterr().err.split())
    assert f"Trained beside the layers: `{tower}`" in said
    trainer.train()
    parts = {part["where"]: part for part in run.report.elsewhere}
    live = [p for p in trainer.model.parameters() if p.requires_grad]
    inside = [p for n, p in trainer.model.named_parameters() if p.requires_grad and f".{tower}." in n]
    assert parts[tower]["trainable_parameters"] == sum(p.numel() for p in inside)
    assert parts[tower]["share"] == pytest.approx(sum(p.numel() for p in inside) / sum(p.numel() for p in live))
    assert not run.report.gradient_entry["moved"]


@pytest.mark.parametrize("family", VISION_LANGUAGE)
def test_the_saved_adapter_reloads_to_the_same_model(family: str, tmp_path: Path) -> None:
    build, path, _ = VISION_LANGUAGE[family]
    trainer = text_trainer(tmp_path, build, "all-linear")
    place(trainer, lora_layers=[1, 3], layers_path=path, guard=False)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    again = PeftModel.from_pretrained(seeded(build), tmp_path / "saved")
    assert adapted_modules(again) == adapted_modules(trainer.model)
    batch = {k: v for k, v in collate(tiny_examples(2)).items() if k != "labels"}
    with torch.no_grad():
        one, other = (model.eval()(**batch).logits for model in (trainer.model, again))
    assert torch.equal(one, other)


def with_images(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Each row begins with the four tokens of an image of its own."""
    batch = collate(rows)
    images = torch.full((len(rows), 4), 5)
    ids, mask = batch["input_ids"].where(batch["input_ids"] != 5, 6), batch["attention_mask"]
    labels = torch.full_like(images, -100)
    seed = int(batch["input_ids"].sum())
    return {
        "input_ids": torch.cat([images, ids], 1),
        "attention_mask": torch.cat([torch.ones_like(images), mask], 1),
        "labels": torch.cat([labels, batch["labels"]], 1),
        "pixel_values": torch.randn(len(rows), 3, 8, 8, generator=torch.Generator().manual_seed(seed)),
    }


STACKS = {"language": "language_model.layers", "vision": "vision_tower.encoder.layers"}
CHECKPOINTING: list[dict[str, Any]] = [
    {},
    {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}},
    {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
]
"""The last, which loses the gradients of a tower whatever layercard does, for language layers alone."""


@pytest.mark.parametrize("checkpointing", CHECKPOINTING, ids=["none", "plain", "reentrant"])
@pytest.mark.parametrize("others", ["shed", "keep"])
@pytest.mark.parametrize("placed", STACKS)
def test_moving_the_entry_changes_no_weight_on_images(
    placed: str, others: str, checkpointing: dict[str, Any], tmp_path: Path
) -> None:
    """The language layers run after the tower: with them trained, all of them run backward if the tower trains too."""
    reentrant = checkpointing.get("activation_checkpointing_kwargs", {}).get("use_reentrant", False)
    if reentrant and (placed, others) != ("language", "shed"):
        pytest.skip("a reentrant checkpoint of pixels, which need no gradient, gives the tower none")
    weights = []
    for moved in (True, False):
        trainer = text_trainer(tmp_path / str(moved), llava, ATTENTION, **checkpointing)
        trainer.data_collator = with_images
        before = trained(trainer.model)
        run = place(
            trainer, lora_layers=[1], layers_path=STACKS[placed], other_stacks=others, gradient_entry=moved, guard=False
        )
        trainer.train()
        weights.append(trained(trainer.model))
        assert all(not torch.equal(before[name], value) for name, value in weights[-1].items())
        if moved and others == "keep":
            assert run.report.gradient_entry["moved"] == (placed == "vision")
    assert equal(*weights)
