"""`place`: what a plain trainer becomes, and everything that is refused with the trainer left as it was."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model

import layercard
from adapted import lora_config, with_adapters
from layercard import plugins
from layercard.errors import DataError, HostError, LayercardError, ModelError, PlacementError, ProbeError, SettingsError
from layercard.hookspecs import hookimpl
from tiny import GQA, VOCAB, collate, tiny_examples, tiny_model
from trainers import Rows, arguments, equal, make_trainer, trained


def trainer_for(model: Any, folder: Path, *, examples: list[dict[str, Any]] | None = None, **changes: Any) -> Any:
    rows = Rows(tiny_examples(24) if examples is None else examples)
    return hf.Trainer(model=model, args=arguments(folder, **changes), train_dataset=rows, data_collator=collate)


def facts(model: torch.nn.Module) -> dict[str, Any]:
    """What `place` may change: names, flags, values, modes and the adapters' configuration."""
    config = getattr(model, "peft_config", {})
    return {
        "trainable": {n: (p.requires_grad, p.detach().nan_to_num()) for n, p in model.named_parameters()},
        "modes": {n: m.training for n, m in model.named_modules()},
        "hooks": {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in model.named_modules()},
        "config": {name: copy.deepcopy(c.to_dict()) for name, c in config.items()},
    }


def assert_untouched(before: dict[str, Any], model: torch.nn.Module) -> None:
    after = facts(model)
    assert after["modes"] == before["modes"] and after["hooks"] == before["hooks"]
    assert after["config"] == before["config"]
    assert after["trainable"].keys() == before["trainable"].keys()
    for name, (flag, value) in before["trainable"].items():
        assert after["trainable"][name][0] is flag and torch.equal(after["trainable"][name][1], value)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_place_trains_what_a_hand_written_configuration_trains(tmp_path: Path, family: str) -> None:
    placed = make_trainer(tmp_path / "placed", family=family)
    run = layercard.place(placed, lora_layers="high", num_layers=2, measure=False)
    by_hand = make_trainer(tmp_path / "hand", family=family, layers=list(run.layers))
    initial = trained(placed.model)
    with torch.no_grad():
        for name, parameter in by_hand.model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(initial[name])
    for trainer in (placed, by_hand):
        torch.manual_seed(3)
        trainer.train()
    assert equal(trained(placed.model), trained(by_hand.model))
    placed.save_model(str(tmp_path / "saved"))
    base = tiny_model(family)
    reloaded = PeftModel.from_pretrained(base, tmp_path / "saved")
    batch = collate(tiny_examples(3, encoder=family == "bert"))
    placed.model.eval()
    assert torch.equal(reloaded.eval()(**batch).logits, placed.model(**batch).logits)


def test_auto_probes_places_and_writes_its_choice(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trainer = trainer_for(with_adapters(tiny_model("llama", num_layers=6), lora_config("llama")), tmp_path)
    trainer.args.max_steps = 1000  # long enough to pay for a look
    run = layercard.place(trainer)
    assert run.layers == (3, 5)
    assert run.statistics is not None and run.statistics.examples == 8
    assert set(run.scores) == {"resnorm"}
    saved = json.loads((tmp_path / "placement.json").read_text())
    assert saved["layers"] == [3, 5] and saved["evidence"] == "none"
    said = capfd.readouterr().err
    assert "layers 3, 5 of 0–5" in said and "unproven" in said and "2x the learning rate" in said
    assert "Predicted: a step is" in said


def test_explicit_layers_are_not_probed(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    run = layercard.place(trainer, lora_layers=[1, 3])
    assert run.statistics is None and run.layers == (1, 3)


def test_a_saved_placement_is_used_as_it_is(tmp_path: Path) -> None:
    first = layercard.place(make_trainer(tmp_path / "a"), lora_layers="last", num_layers=2)
    again = layercard.place(make_trainer(tmp_path / "b"), lora_layers=str(tmp_path / "a" / "placement.json"))
    assert again.layers == first.layers
    resumed = layercard.place(make_trainer(tmp_path / "a", resume_from_checkpoint="True"))
    assert resumed.layers == first.layers and resumed.statistics is None


def test_a_contradiction_to_the_saved_placement_is_an_error(tmp_path: Path) -> None:
    layercard.place(make_trainer(tmp_path), lora_layers=[2, 3])
    trainer = make_trainer(tmp_path, resume_from_checkpoint="True")
    before = facts(trainer.model)
    with pytest.raises(SettingsError, match=r"placement\.json"):
        layercard.place(trainer, lora_layers=[0, 1])
    assert_untouched(before, trainer.model)


def test_experts_are_left_out_by_the_probe_and_by_narrowing(tmp_path: Path) -> None:
    base = hf.MixtralForCausalLM(hf.MixtralConfig(**GQA, num_local_experts=2))
    targets = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]}
    model = get_peft_model(base, LoraConfig(r=2, task_type="CAUSAL_LM", **targets))
    run = layercard.place(trainer_for(model, tmp_path), lora_layers="high", num_layers=1)
    assert run.statistics is not None
    assert "mlp.experts.gate_up_proj" in run.statistics.left_out
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable and all(f".layers.{run.layers[0]}." in name for name in trainable)


def test_plugins_see_the_placement(tmp_path: Path) -> None:
    seen = []

    class Observer:
        @hookimpl
        def after_placement(self, placement: Any) -> None:
            seen.append(placement.layers)

    manager = plugins.build_manager([("observer", Observer())])
    layercard.place(make_trainer(tmp_path), lora_layers=[3], manager=manager)
    assert seen == [(3,)]


Refusal = tuple[Callable[[Path], Any], dict[str, Any], type[LayercardError], str]


def lora(**changes: Any) -> Any:
    return with_adapters(tiny_model("llama"), lora_config("llama", **changes))


def trained_adapters() -> Any:
    model = lora()
    next(p for n, p in model.named_parameters() if "lora_B" in n).data.fill_(0.1)
    return model


def two_adapters() -> Any:
    model = lora()
    model.add_adapter("second", lora_config("llama"))
    next(p for n, p in model.named_parameters() if "lora_B.second" in n).data.fill_(0.1)
    return model


def with_optimizer(folder: Path) -> Any:
    trainer = trainer_for(lora(), folder)
    trainer.create_optimizer()
    return trainer


def nan_model() -> Any:
    model = lora()
    model.get_base_model().lm_head.weight.data.fill_(torch.nan)
    return model


def masked(count: int) -> list[dict[str, Any]]:
    return [{"input_ids": e["input_ids"], "labels": [-100] * len(e["input_ids"])} for e in tiny_examples(count)]


def on_meta(folder: Path) -> Any:
    trainer = trainer_for(lora(), folder)
    layer = trainer.model.get_base_model().model.layers[1].mlp
    layer.down_proj.base_layer.weight = torch.nn.Parameter(torch.empty(1, device="meta"), requires_grad=False)
    return trainer


def test_layers_chosen_beforehand_need_no_weights(tmp_path: Path) -> None:
    """Under FSDP a rank may hold the model on the meta device; the host has built the adapter on the chosen layers."""
    from layercard.pipeline.before.choosing import Chosen
    from layercard.placement.placement import LayerPlacement

    trainer = trainer_for(lora(layers_to_transform=[2, 3]), tmp_path)
    trainer.model.to("meta")
    chosen = Chosen(LayerPlacement((2, 3), 4, "auto", None, "by depth"))
    run = layercard.place(trainer, chosen=chosen)
    assert run.layers == (2, 3)
    assert not run.narrowing.shed_names
    assert LayerPlacement.load(tmp_path / "placement.json").layers == (2, 3)


def shared_layers() -> Any:
    base = hf.AlbertForMaskedLM(
        hf.AlbertConfig(vocab_size=VOCAB, hidden_size=32, num_attention_heads=4, embedding_size=16)
    )
    return get_peft_model(base, LoraConfig(r=2, target_modules=["query"]))


REFUSALS: dict[str, Refusal] = {
    "not a trainer": (lambda folder: object(), {}, HostError, "no trainer that layercard knows"),
    "an optimizer": (with_optimizer, {}, HostError, "optimizer already"),
    "no adapters": (lambda f: trainer_for(tiny_model("llama"), f), {}, ModelError, "adapter"),
    "trained adapters": (lambda f: trainer_for(trained_adapters(), f), {}, ModelError, "trained"),
    "two adapters": (lambda f: trainer_for(two_adapters(), f), {}, ModelError, "second"),
    "PiSSA": (lambda f: trainer_for(lora(init_lora_weights="pissa"), f), {}, ModelError, "pissa"),
    "OLoRA": (lambda f: trainer_for(lora(init_lora_weights="olora"), f), {}, ModelError, "olora"),
    "random B": (lambda f: trainer_for(lora(init_lora_weights=False), f), {}, ModelError, "init_lora_weights"),
    "prompt tuning": (
        lambda f: trainer_for(
            get_peft_model(tiny_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)), f
        ),
        {},
        ModelError,
        "PROMPT_TUNING",
    ),
    "IA3": (
        lambda f: trainer_for(
            get_peft_model(
                tiny_model("llama"), IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
            ),
            f,
        ),
        {},
        ModelError,
        "IA3",
    ),
    "shared layers": (lambda f: trainer_for(shared_layers(), f), {}, ModelError, "shared layers"),
    "meta device": (on_meta, {}, ModelError, "layercard plan"),
    "empty dataset": (lambda f: trainer_for(lora(), f, examples=[]), {}, DataError, "empty"),
    "all labels masked": (lambda f: trainer_for(lora(), f, examples=masked(8)), {}, DataError, "masked"),
    "one example": (
        lambda f: trainer_for(lora(), f, examples=tiny_examples(1)),
        {"lora_layers": "high"},
        DataError,
        "1 example",
    ),
    "NaN loss": (lambda f: trainer_for(nan_model(), f), {"probe_budget": 0.5}, ProbeError, "loss of the base model"),
    "out of range": (lambda f: make_trainer(f), {"lora_layers": [1, 4]}, SettingsError, "layers 0–3"),
    "duplicate": (lambda f: make_trainer(f), {"lora_layers": [1, 1]}, SettingsError, "twice"),
    "negative": (lambda f: make_trainer(f), {"lora_layers": [-1]}, SettingsError, "-1"),
    "none": (lambda f: make_trainer(f), {"lora_layers": []}, SettingsError, "empty"),
    "a bare integer": (lambda f: make_trainer(f), {"lora_layers": 2}, SettingsError, r"`\[2\]`"),
    "unknown score": (lambda f: make_trainer(f), {"strategy": "high", "score": "resnrom"}, SettingsError, "`resnorm`"),
    "unknown strategy": (lambda f: make_trainer(f), {"lora_layers": "unifrom"}, SettingsError, "`uniform`"),
    "unknown setting": (lambda f: make_trainer(f), {"min_entri": 2}, SettingsError, "`min_entry`"),
    "too deep": (lambda f: make_trainer(f), {"lora_layers": "saved.json"}, PlacementError, "does not exist"),
}


@pytest.fixture(params=REFUSALS, ids=str)
def refusal(request: pytest.FixtureRequest) -> Iterator[Refusal]:
    return REFUSALS[request.param]


def test_what_cannot_work_is_refused_before_training(tmp_path: Path, refusal: Refusal) -> None:
    make, settings, kind, message = refusal
    trainer = make(tmp_path)
    model = getattr(trainer, "model", torch.nn.Module())
    before = facts(model)
    callbacks = list(trainer.callback_handler.callbacks) if hasattr(trainer, "callback_handler") else []
    with pytest.raises(kind, match=message):
        layercard.place(trainer, **settings)
    if not any(p.is_meta for p in model.parameters()):
        assert_untouched(before, model)
    if callbacks:
        assert trainer.callback_handler.callbacks == callbacks
    assert not (tmp_path / "placement.json").exists()


def test_a_placement_that_cannot_be_written_leaves_the_trainer_as_it_was(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "out")
    (tmp_path / "out").rmdir() if (tmp_path / "out").exists() else None
    (tmp_path / "out").write_text("a file where the output folder should be")
    before, callbacks = facts(trainer.model), list(trainer.callback_handler.callbacks)
    with pytest.raises(OSError, match="out"):
        layercard.place(trainer, lora_layers=[3])
    assert_untouched(before, trainer.model)
    assert trainer.callback_handler.callbacks == callbacks
