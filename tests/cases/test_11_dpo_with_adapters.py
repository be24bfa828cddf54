"""DPO with a PeftModel: TRL's copy `ref` of a fresh adapter is narrowed with it and stays the initial policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel

import layercard
from adapted import adapted, batch_of, logits_of, lora_config
from layercard.errors import ModelError
from tiny import tiny_model, tiny_tokenizer
from trainers import StopAfter

trl = pytest.importorskip("trl")
pytest.importorskip("layercard_trl")

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_(en|dis)able` is deprecated")  # TRL 1.16

ROWS = Dataset.from_list(
    [{"prompt": f"what is {i}", "chosen": f"it is {i * i}", "rejected": "who knows, " * (1 + i % 3)} for i in range(8)]
)
LAYERS = (2, 3)


def dpo(model: Any, folder: Path, *, peft_config: Any = None, steps: int = 4, rows: Any = ROWS, **changes: Any) -> Any:
    values = {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no"}
    args = trl.DPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, max_steps=steps, report_to=[], disable_tqdm=True,
        **(values | changes),
    )  # fmt: skip
    return trl.DPOTrainer(
        model=model, args=args, train_dataset=rows, processing_class=tiny_tokenizer(), peft_config=peft_config
    )


def values(model: Any, adapter: str) -> dict[str, torch.Tensor]:
    named = model.named_parameters()
    return {n.replace(f".{adapter}.", "."): p.detach().clone() for n, p in named if f".{adapter}." in n}


@pytest.mark.parametrize("layers", ["last", "auto", list(LAYERS)])
def test_a_fresh_adapter_and_its_reference_are_placed_together(tmp_path: Path, layers: Any) -> None:
    trainer = dpo(adapted("llama"), tmp_path)
    run = layercard.place(trainer, lora_layers=layers)
    model = trainer.model
    assert set(model.peft_config) == {"default", "ref"}
    assert values(model, "default").keys() == values(model, "ref").keys()
    assert {run.stack.layer_of(name) for name in values(model, "default")} == set(run.layers)
    assert not any(p.requires_grad for name, p in model.named_parameters() if ".ref." in name)
    before = values(model, "ref")
    trainer.train()
    after = values(model, "ref")
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert run.report.backward_layers == tuple(range(run.layers[0], 4))
    assert any(not torch.equal(after[name], value) for name, value in values(model, "default").items())


def test_it_trains_what_layers_written_by_hand_train(tmp_path: Path) -> None:
    placed = dpo(adapted("llama"), tmp_path / "placed")
    run = layercard.place(placed, lora_layers=list(LAYERS), guard=False, measure=False)
    by_hand = dpo(adapted("llama", layers_to_transform=list(LAYERS)), tmp_path / "hand")
    for adapter in ("default", "ref"):
        source = values(placed.model, adapter)
        for name, parameter in by_hand.model.named_parameters():
            if f".{adapter}." in name:
                parameter.data.copy_(source[name.replace(f".{adapter}.", ".")])
    for trainer in (placed, by_hand):
        torch.manual_seed(5)
        trainer.train()
    losses = [[line["loss"] for line in t.state.log_history if "loss" in line] for t in (placed, by_hand)]
    assert losses[0] == losses[1]
    ours, theirs = values(placed.model, "default"), values(by_hand.model, "default")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert run.layers == LAYERS


def test_what_is_saved_holds_the_placed_layers_and_reloads(tmp_path: Path) -> None:
    trainer = dpo(adapted("llama"), tmp_path / "run", save_strategy="steps", save_steps=2)
    layercard.place(trainer, lora_layers=list(LAYERS), guard=False, measure=False)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    for folder in (tmp_path / "saved", tmp_path / "saved" / "ref", tmp_path / "run" / "checkpoint-2" / "ref"):
        assert json.loads((folder / "adapter_config.json").read_text())["layers_to_transform"] == list(LAYERS)
    loaded = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "saved")
    assert torch.equal(logits_of(loaded, batch_of("llama")), logits_of(trainer.model, batch_of("llama")))


@pytest.mark.parametrize("named", [True, False])
def test_a_placed_run_with_its_reference_is_resumed(tmp_path: Path, named: bool) -> None:
    whole = dpo(adapted("llama"), tmp_path, save_strategy="steps", save_steps=2)
    layercard.place(whole, lora_layers=list(LAYERS), guard=False, measure=False)
    whole.train()
    checkpoint = str(tmp_path / "checkpoint-2")
    resumed = dpo(adapted("llama"), tmp_path, resume_from_checkpoint=checkpoint if named else None)
    layercard.place(resumed, lora_layers="auto" if named else list(LAYERS), guard=False, measure=False)
    resumed.train(resume_from_checkpoint=checkpoint)
    ours, theirs = values(resumed.model, "default"), values(whole.model, "default")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_of_other_layers_is_refused_beside_a_reference_too(tmp_path: Path) -> None:
    from layercard.errors import PlacementError

    whole = dpo(adapted("llama"), tmp_path, save_strategy="steps", save_steps=2)
    layercard.place(whole, lora_layers=list(LAYERS), guard=False, measure=False)
    whole.train()
    resumed = dpo(adapted("llama"), tmp_path)
    layercard.place(resumed, lora_layers=[1], guard=False, measure=False)
    with pytest.raises(PlacementError, match=r"other layers.*`lora_layers: \[2, 3\]`"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_the_trial_runs_beside_a_reference(tmp_path: Path) -> None:
    trainer = dpo(adapted("llama"), tmp_path, rows=ROWS.repeat(8), steps=1000)
    trainer.add_callback(StopAfter(2))
    run = layercard.place(
        trainer,
        lora_layers=[3],
        guard_budget=0.5,
        measure_budget=0.5,
        on_quality_loss="all_layers",
        quality_threshold=1.0,
    )
    trainer.train()
    assert run.report.quality["reaction"] == "all_layers" and run.placement.is_all
    held = {name: values(trainer.model, name).keys() for name in ("default", "ref")}
    assert held["default"] == held["ref"]
    assert {run.stack.layer_of(name) for name in held["ref"]} == {0, 1, 2, 3}
    assert not any(value.any() for name, value in values(trainer.model, "ref").items() if ".lora_B." in name)


def sft_trained() -> Any:
    model = adapted("llama")
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_a_trained_adapter_is_called_trained_and_merging_it_works(tmp_path: Path) -> None:
    trainer = dpo(sft_trained(), tmp_path)
    with pytest.raises(ModelError, match=r"already trained.*`merge_and_unload\(\)`.*`peft_config`") as error:
        layercard.place(trainer, lora_layers="last")
    assert "delete" not in str(error.value)
    assert set(trainer.model.peft_config) == {"default", "ref"}
    again = dpo(sft_trained().merge_and_unload(), tmp_path / "merged", peft_config=lora_config("llama"))
    assert layercard.place(again, lora_layers=[3], guard=False, measure=False).layers == (3,)
    again.train()


def test_a_peft_config_for_the_trainer_works_as_before(tmp_path: Path) -> None:
    trainer = dpo(tiny_model("llama"), tmp_path, peft_config=lora_config("llama"))
    run = layercard.place(trainer, lora_layers="last", num_layers=1, guard=False, measure=False)
    trainer.train()
    assert set(trainer.model.peft_config) == {"default"} and run.layers == (3,)
