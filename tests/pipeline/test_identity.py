"""What report.json says a run was."""

from __future__ import annotations

import random
import re
import sys
import types

import pytest
import torch
from datasets import Dataset

from adapted import lora_config, with_adapters
from layercard import place
from layercard.hosts.plain import PlainHost
from layercard.pipeline.during.identity import data_identity, own_command, public_command, run_identity
from layercard.report.files import load_report
from tiny import tiny_model
from trainers import make_trainer, train


def test_the_report_names_what_was_trained_and_how(tmp_path):
    trainer = make_trainer(tmp_path)
    run = place(trainer, lora_layers="high", guard=False)
    train(trainer)
    report = load_report(tmp_path / "report.json")
    config = trainer.model.peft_config["default"]
    said = report.run
    assert said["model"]["architecture"] == "LlamaForCausalLM"
    assert said["data"]["rows"] == 40
    assert said["adapter"]["rank"] == config.r and said["adapter"]["alpha"] == config.lora_alpha
    assert set(said["adapter"]["target_modules"]) == set(lora_config("llama").target_modules)
    assert said["training"]["learning_rate"] == trainer.args.learning_rate
    assert said["device"]["type"] == "cpu"
    assert said["started"] <= said["ended"] and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", said["ended"])
    assert report.scores == {"resnorm": pytest.approx(run.scores["resnorm"].importance.tolist())}
    assert report.placement["strategy"] == "high" and report.placement["digest"] == run.placement.digest()
    assert report.predicted["step_speedup"] > 0
    assert (tmp_path / "report.html").read_text().count('<rect class="chosen"') == 2


def test_ranks_that_differ_are_all_named(tmp_path):
    trainer = make_trainer(tmp_path)
    config = lora_config("llama", rank_pattern={"q_proj": 2})
    trainer.model = with_adapters(tiny_model("llama"), config)
    assert run_identity(PlainHost(trainer), command=[])["adapter"]["rank"] == sorted({2, config.r})


def test_the_digest_tells_data_apart_and_draws_nothing():
    rows = [{"input_ids": [i, i + 1], "labels": [i]} for i in range(100)]
    torch.manual_seed(3)
    states = random.getstate(), torch.get_rng_state()
    one, same = data_identity(Dataset.from_list(rows)), data_identity(Dataset.from_list(rows))
    other = data_identity(Dataset.from_list([{"input_ids": [7], "labels": [7]}, *rows[1:]]))
    shuffled = data_identity(Dataset.from_list(rows[::-1]))
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
    assert one == same and one["rows"] == 100
    assert one["digest"] != shuffled["digest"]
    assert one["digest"] != data_identity(Dataset.from_list(rows[:99]))["digest"]
    assert one["digest"] != other["digest"]


def test_data_of_any_other_kind_is_named_by_its_class():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from ()

    found = data_identity(Stream())
    assert found["rows"] is None and found["digest"] is None and found["name"].endswith("Stream")
    stream = data_identity(Dataset.from_list([{"a": 1}]).to_iterable_dataset())
    assert stream["rows"] is None and stream["digest"] is None
    assert data_identity(None) == {"name": None, "split": None, "rows": None, "digest": None}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/home/me/bin/trl", "sft", "--dataset", "/data/private/rows.jsonl"], "trl sft --dataset rows.jsonl"),
        (["x", "--hub_token", "abcdef", "--seed", "1"], "x --hub_token … --seed 1"),
        (["x", "--hub-token=abcdef"], "x --hub-token=…"),
        (["x", "hf_abcdefghijklmnopqrstuvwx"], "x …"),
        (["x", "--name", "two words", "<script>"], "x --name 'two words' '<script>'"),
        (["x", "--pad_token_id", "0", "--max_tokens", "5"], "x --pad_token_id 0 --max_tokens 5"),
    ],
)
def test_a_command_is_told_without_folders_and_secrets(arguments, said):
    assert public_command(arguments) == said


def test_a_module_that_python_ran_is_named_as_it_was_run(monkeypatch):
    """`layercard trl-sft` starts `python -m layercard_trl.sft`, which its own file would not tell."""
    module = types.SimpleNamespace(__spec__=types.SimpleNamespace(name="layercard_trl.sft"))
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.setattr(sys, "argv", ["/site/layercard_trl/sft.py", "--use_peft"])
    assert own_command() == ["python", "-m", "layercard_trl.sft", "--use_peft"]
    module.__spec__ = None
    assert own_command() == sys.argv
