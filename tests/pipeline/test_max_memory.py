"""`max_memory`: layers whose predicted peak leaves a tenth of the device free, as `place` and `plan` predict it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from command_line import Run, questions, runner
from layercard import PlacementSettings, place, plugins
from layercard.anatomy.adaptable import adapted_layers
from layercard.anatomy.checkpoint_names import checkpointing_arguments
from layercard.cost.memory import peak_bytes
from layercard.cost.peak import optimizer_state
from layercard.errors import SettingsError
from layercard.pipeline.before.looking import RunToPlace, locate_layers
from layercard.pipeline.before.peak_ahead import predicted_peaks
from tiny import tiny_model, tiny_tokenizer
from trainers import make_trainer

UNTRIED = {"guard": False, "measure": False}


def in_sft(folder: Path, **arguments: Any) -> SFTTrainer:
    rows = [{"prompt": "two and two are", "completion": f" {'four ' * n}"} for n in range(1, 17)]
    args = SFTConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", per_device_train_batch_size=4, max_steps=2,
        disable_tqdm=True, optim="sgd", gradient_accumulation_steps=1, **checkpointing_arguments(True) | arguments,
    )  # fmt: skip
    lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"])
    return SFTTrainer(
        tiny_model("llama", num_layers=6), args,
        train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer(), peft_config=lora,
    )  # fmt: skip


TRAINERS: dict[str, Callable[[Path], Any]] = {
    "plain": partial(make_trainer, optim="sgd"),
    "plain, checkpointing": partial(make_trainer, optim="sgd", **checkpointing_arguments(True)),
    "sft": partial(in_sft, **checkpointing_arguments(False)),
    "sft, checkpointing": in_sft,
}


def to_place(trainer: Any, size: str = "1GiB") -> RunToPlace:
    extensions = plugins.extensions()
    host = extensions.locate_host(trainer)
    assert host is not None
    stack = locate_layers(host.model, None, extensions)
    wanted = PlacementSettings.from_user(max_memory=size)
    return RunToPlace(host, wanted, stack, extensions, adaptable=adapted_layers(host.model, stack))


def peak_inside_training(trainer: Any, layers: tuple[int, ...]) -> int:
    """Return what a step of the widest batch holds inside `train()`, checkpointed and entered as the run is."""
    placed, found = place(trainer, lora_layers=list(layers), **UNTRIED), []
    rows = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    widest = max(rows, key=lambda row: len(row["input_ids"]))
    batch = trainer.data_collator([dict(widest) for _ in range(trainer.args.per_device_train_batch_size)])

    class Measure(TrainerCallback):
        def on_train_begin(self, *_: Any, model: Any = None, **__: Any) -> None:
            model.train()

            def step() -> None:
                with placed.host.preserved():
                    placed.host.training_step(model, (trainer._prepare_inputs(dict(batch)), None))

            for _ in range(2):  # the first one makes what torch keeps
                model.zero_grad(set_to_none=True)
                found.append(peak_bytes(step, model, torch.device("cpu")))
            model.zero_grad(set_to_none=True)

    trainer.add_callback(Measure())
    trainer.train()
    return int(found[-1])


@pytest.mark.parametrize("name", TRAINERS)
def test_the_prediction_is_near_what_a_step_of_the_widest_batch_holds(name: str, tmp_path: Path) -> None:
    run = to_place(TRAINERS[name](tmp_path / "ahead"))
    peak = predicted_peaks(run)
    assert peak is not None
    depth = len(run.stack)
    for layers in (tuple(range(depth)), (depth - 1,), (1, depth - 1)):
        measured = peak_inside_training(TRAINERS[name](tmp_path / str(layers)), layers)
        assert peak(layers) == pytest.approx(measured, rel=0.15), layers


def test_place_keeps_within_memory_and_takes_what_fits(tmp_path: Path) -> None:
    peak = predicted_peaks(to_place(in_sft(tmp_path / "ahead")))
    assert peak is not None
    every, last = peak(range(6)), peak([5])
    assert last < every
    chosen = {}
    for share in (0.0, 0.3, 0.6, 1.0):
        limit = last + share * (every - last)
        size = f"{limit / 0.9 / 2**20 + 1e-4:.6f}MiB"
        run = place(in_sft(tmp_path / str(share)), lora_layers={"max_memory": size}, **UNTRIED)
        assert peak(run.layers) <= limit + 200
        assert " of all-layer LoRA's step time and to hold " in run.placement.reason
        chosen[share] = run.layers
    assert chosen[0.0] == (5,)
    assert chosen[1.0] == tuple(range(6))
    assert len(chosen[0.0]) <= len(chosen[0.3]) <= len(chosen[0.6]) <= len(chosen[1.0])


def test_memory_is_held_beside_a_budget(tmp_path: Path) -> None:
    peak = predicted_peaks(to_place(in_sft(tmp_path / "ahead")))
    assert peak is not None
    size = f"{peak(range(2, 6)) / 0.9 / 2**20 + 1e-4:.6f}MiB"
    run = place(in_sft(tmp_path / "both"), lora_layers={"max_memory": size, "budget": 0.6}, **UNTRIED)
    assert peak(run.layers) <= peak(range(2, 6))
    assert "(at most 60%)" in run.placement.reason


def preferring(folder: Path) -> DPOTrainer:
    rows = [{"prompt": "two and two are", "chosen": " four", "rejected": " five"}] * 4
    args = DPOConfig(output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", max_steps=1)
    lora = LoraConfig(r=4, target_modules=["q_proj"])
    return DPOTrainer(
        tiny_model("llama"), args=args, train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer(),
        peft_config=lora,
    )  # fmt: skip


def test_what_place_refuses(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"layer 3 of 0–3 alone is predicted to need"):
        place(make_trainer(tmp_path), lora_layers={"max_memory": "1KB"})
    with pytest.raises(SettingsError, match=r"`max_memory` is '24'. It is the memory of a device with its unit"):
        place(make_trainer(tmp_path), lora_layers={"max_memory": "24"})
    with pytest.raises(SettingsError, match=r"`num_layers` and `max_memory` are both given"):
        place(make_trainer(tmp_path), lora_layers={"max_memory": "24GiB", "num_layers": 2})
    with pytest.raises(SettingsError, match=r"nothing tells what this run needs. A step of trl.DPOTrainer runs more"):
        place(preferring(tmp_path), lora_layers={"max_memory": "24GiB"})


def test_a_least_gain_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    peak = predicted_peaks(to_place(in_sft(tmp_path / "ahead")))
    assert peak is not None
    size = f"{peak([5]) / 0.9 / 2**20 + 1e-4:.6f}MiB"
    with pytest.raises(SettingsError, match=r"what fits there holds at most \d+% of the summed score"):
        place(in_sft(tmp_path / "run"), lora_layers={"max_memory": size, "min_gain": 0.95}, **UNTRIED)


@pytest.mark.parametrize(
    ("name", "itemsize", "state"),
    [("adamw_torch_fused", 4, 2), ("paged_adamw_8bit", 4, 0.5), ("adamw_8bit", 2, 1), ("sgd", 4, 0), ("lion_8bit", 4, 0.25),
     ("adafactor", 4, 0), ("something_new", 4, 2)],
)  # fmt: skip
def test_what_optimizers_keep(name: str, itemsize: int, state: float) -> None:
    assert optimizer_state(name, itemsize) == state


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


def test_plan_keeps_within_memory(run: Run, tmp_path: Path) -> None:
    model = tmp_path / "model"
    tiny_model("llama", num_layers=6).save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    asked = ("plan", model, "--dataset", questions(tmp_path), "--no-time-costs", "--json", "--batch-size", 2)
    whole = run(*asked).document["memory"]["all_layers"]["peak_bytes"]
    roomy = run(*asked, "--max-memory", "24GiB").document
    assert roomy["placement"]["layers"] == list(range(6))
    tight = run(*asked, "--max-memory", f"{whole * 0.995 / 0.9 / 2**20:.4f}MiB").document
    row = next(row for row in tight["strategies"] if row["strategy"] == "planned")
    assert row["peak_bytes"] <= 0.996 * whole
    assert row["fits"] == "yes"
    assert len(tight["placement"]["layers"]) < 6
    none = run(*asked, "--max-memory", "1MiB")
    assert none.code == 2
    assert "alone is predicted to need" in none.words


def test_a_model_whose_memory_cannot_be_told_is_refused_with_the_reason(run: Run, tmp_path: Path) -> None:
    tiny_model("deberta").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    done = run("plan", tmp_path, "--dataset", questions(tmp_path), "--max-memory", "24GiB", "--no-time-costs")
    assert done.code == 2
    assert "`max_memory` is given. The memory of DebertaV2" in done.words
