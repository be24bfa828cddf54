"""Control rows in real trainers: the losses against transformers' own, and that the run is as if they were not read."""

import json

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, T5Config, T5ForConditionalGeneration

from guarded import RIGHT, guarded_trainer
from layercard import place
from layercard.errors import SettingsError
from layercard.pipeline.during.control import _check_model
from layercard.quality.control import BUILTIN, read_control
from layercard.report.files import load_report
from layercard.report.markdown import markdown
from layercard.report.tradeoff import as_markdown, read_tradeoffs
from tiny import tiny_model, tiny_tokenizer
from trainers import AtFirstStep, equal, logs, train, trained

TRIED = {"guard": True, "measure": False, "guard_budget": 0.15}


def _trainer(folder, **changes):
    trainer = guarded_trainer(folder, **changes)
    trainer.processing_class = tiny_tokenizer()
    return trainer


def placed(trainer, layers, **settings):
    return place(trainer, lora_layers=list(layers), **settings)


def _oracle(model, texts):
    """transformers' own loss, in evaluation mode, averaged over rows."""
    modes = {name: module.training for name, module in model.named_modules()}
    model.eval()
    losses = []
    for text in texts:
        ids = tiny_tokenizer()(text, return_tensors="pt")["input_ids"][:, :64]
        with torch.no_grad():
            losses.append(model(input_ids=ids, labels=ids).loss.item())
    for name, module in model.named_modules():
        module.training = modes[name]
    return sum(losses) / len(losses)


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    texts = ["Water is wet.", "2 + 2 = 4", "def f(x):\n    return x"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path, texts


def test_losses_are_those_that_transformers_finds(tmp_path, rows):
    path, texts = rows
    trainer = _trainer(tmp_path / "run")
    run = placed(trainer, RIGHT, control=str(path), **TRIED)
    with trainer.model.disable_adapter():
        base = _oracle(trainer.model, texts)
    train(trainer)
    found = run.report.quality["forgetting"]
    assert found["loss"]["before"] == pytest.approx(base, abs=1e-5)
    assert found["loss"]["end"] == pytest.approx(_oracle(trainer.model, texts), abs=1e-5)
    assert found["rise"]["end"] == pytest.approx(found["loss"]["end"] - found["loss"]["before"])
    assert None not in found["rise"].values()
    assert (found["rows"], found["rows_from"], found["reason"]) == (3, "rows.jsonl", None)
    assert load_report(tmp_path / "run" / "report.json").quality["forgetting"] == found
    assert "Forgetting, in nats a token" in (tmp_path / "run" / "report.html").read_text()
    assert f"{found['rise']['end']:+.4f} (end)" in markdown(run.report)
    assert f"{found['rise']['end']:+.4f}" in as_markdown(read_tradeoffs([tmp_path / "run"]))
    assert "Forgetting:" in str(run.report)


def test_at_the_end_stands_the_best_checkpoint_where_it_is_loaded(tmp_path, rows):
    path, texts = rows
    trainer = _trainer(
        tmp_path / "run", stop_after=6, learning_rate=1.0, lr_scheduler_type="constant", eval_strategy="steps",
        eval_steps=2, save_strategy="steps", save_steps=2, load_best_model_at_end=True, greater_is_better=True,
    )  # fmt: skip
    run = placed(trainer, RIGHT, control=str(path), guard=False, measure=False)
    train(trainer)
    assert trainer.state.best_global_step < 6
    found = run.report.quality["forgetting"]
    assert found["loss"]["end"] == pytest.approx(_oracle(trainer.model, texts), abs=1e-5)
    assert (found["reason"], load_report(tmp_path / "run" / "report.json")) == (None, run.report)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_run_is_bit_for_bit_that_without_control_rows(tmp_path, checkpointing):
    seen, runs = [], []
    for control in (BUILTIN, None):
        trainer = _trainer(
            tmp_path / str(control), activation_checkpointing=checkpointing, gradient_accumulation_steps=2
        )
        run = placed(trainer, RIGHT, control=control, prefix_cache="on", **TRIED)
        trainer.add_callback(watcher := AtFirstStep())
        train(trainer)
        seen.append(watcher.seen)
        modes = [module.training for module in trainer.model.modules()]
        runs.append(
            (run, trained(trainer.model), logs(trainer), trainer.model.state_dict(), torch.get_rng_state(), modes)
        )
    (
        (with_rows, values, log, state, noise, modes),
        (without, other, other_log, other_state, other_noise, other_modes),
    ) = runs
    assert with_rows.report.quality["forgetting"]["rows"] == 40
    assert without.report.quality["forgetting"] is None
    assert equal(values, other) and log == other_log and equal(state, other_state)
    assert torch.equal(noise, other_noise) and modes == other_modes
    assert with_rows.report.prefix_cache == without.report.prefix_cache
    quality, plain = ({**run.report.quality, "forgetting": None, "seconds": None} for run in (with_rows, without))
    assert quality == plain
    first, second = seen
    assert equal(first.pop("values"), second.pop("values"))
    assert first == second


def _said_by(model):
    """A text that the model itself says, so that it knows it well."""
    ids = tiny_tokenizer()("W", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        for _ in range(30):
            logits = model(input_ids=ids).logits[0, -1, : len(tiny_tokenizer())]
            logits[:4] = float("-inf")  # special tokens are no text
            ids = torch.cat([ids, logits.argmax().view(1, 1)], dim=1)
    return "".join(tiny_tokenizer().convert_ids_to_tokens(ids[0].tolist()))


def test_a_model_that_is_made_to_forget_is_said_to(tmp_path):
    rises = []
    for rate in (1e-5, 1.0):
        trainer = _trainer(tmp_path / str(rate), learning_rate=rate, lr_scheduler_type="constant", stop_after=4)
        path = tmp_path / "known.jsonl"
        path.write_text(json.dumps({"text": _said_by(trainer.model.eval())}))
        run = placed(trainer, RIGHT, control=str(path), guard=False)
        train(trainer)
        found = run.report.quality["forgetting"]
        rises.append(found["rise"]["end"])
        assert found["rise"]["all_layers"] is found["rise"]["placed"] is None
    assert abs(rises[0]) < 0.05
    assert rises[1] > 1
    assert f"Forgetting: {rises[1]:+.4f} nats a token" in str(run.report)
    assert "placed layers unknown" in str(run.report)


def test_a_resumed_run_keeps_what_its_beginning_found(tmp_path, rows):
    first = _trainer(tmp_path / "run", save_strategy="steps", save_steps=1)
    begun = placed(first, RIGHT, control=str(rows[0]), **TRIED)
    train(first)
    found = begun.report.quality["forgetting"]
    for kept in (True, False):
        if not kept:
            (tmp_path / "run" / "report.json").unlink()
        resumed = _trainer(tmp_path / "run", stop_after=3)
        again = placed(resumed, RIGHT, control=str(rows[0]), **TRIED)
        train(resumed, resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
        now = again.report.quality["forgetting"]
        assert now["loss"]["end"] == pytest.approx(_oracle(resumed.model, rows[1]), abs=1e-5)
        assert now["loss"]["before"] == (found["loss"]["before"] if kept else None)
        assert (now["rise"]["end"] is None) != kept
        assert now["reason"] is None if kept else "resumed" in now["reason"]


def test_what_cannot_be_judged_is_refused_before_training(tmp_path, rows):
    with pytest.raises(SettingsError, match="no tokenizer"):
        place(guarded_trainer(tmp_path), lora_layers=[2, 3], control=BUILTIN)
    with pytest.raises(SettingsError, match="cannot be read"):
        place(_trainer(tmp_path), lora_layers=[2, 3], control="missing.jsonl")
    rows[0].write_text('{"text": "fine"}\n{"words": 1}\n')
    with pytest.raises(SettingsError, match="Line 2"):
        place(_trainer(tmp_path), lora_layers=[2, 3], control=str(rows[0]))


def test_models_that_predict_no_next_token_are_refused_by_name():
    sizes = {
        "vocab_size": 32,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    encoder = BertForSequenceClassification(BertConfig(**sizes))
    both = T5ForConditionalGeneration(T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    for model in (encoder, both):
        with pytest.raises(SettingsError, match=f"{type(model).__name__} is no causal language model"):
            _check_model(model)
    _check_model(tiny_model("llama"))


def test_shipped_rows_are_forty_and_differ():
    texts = read_control(BUILTIN)
    assert len(set(texts.texts)) == 40
