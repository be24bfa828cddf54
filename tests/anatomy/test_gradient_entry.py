"""Gradient entry: same weights as without it, no backward below it, everything put back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments

from layercard.anatomy.checkpoint_names import OLD, current_name
from layercard.anatomy.gradient_entry import (
    BackwardWatch,
    GradientEntry,
    cause_of,
    choose_checkpointing,
    find_obstacle,
)
from layercard.anatomy.input_gradients import input_gradient_hooks
from layercard.anatomy.layers import LayerStack, find_layers
from layercard.errors import PlacementError
from tiny import CAUSAL, ENCODERS, collate, tiny_examples, tiny_model, tiny_tokenizer
from trainers import renamed
from trl_names import uses_trl

PLACED = [2, 3]
CHECKPOINTING: dict[str, dict[str, Any]] = {
    "none": {"activation_checkpointing": False},
    "reentrant": {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
    "non-reentrant": {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
    },
}
PARTLY: dict[str, dict[str, Any]] = {
    "every second layer": {"every_n_layers": 2, "use_reentrant": False},
    "every second layer, reentrant": {"every_n_layers": 2, "use_reentrant": True},
    "every third layer": {"every_n_layers": 3},
    "offload": {"offload": True},
    "offload, reentrant": {"offload": True, "use_reentrant": True},
    "offload, every second layer": {"offload": True, "every_n_layers": 2},
}
"""What transformers 5.23 and later take: some layers alone, and saved activations in the host's memory."""


def adapted(family: str, layers: list[int] | None = None, **config: Any) -> Any:
    """LoRA with dropout on every matrix of `layers`, B already away from zero."""
    base = tiny_model(family)
    stack = find_layers(base)
    targets = [n for n, m in base.named_modules() if type(m).__name__ in {"Linear", "Conv1D"} and "experts" not in n]
    placed = [name for name in targets if stack.layer_of(name) in (layers or PLACED)]
    settings = {"target_modules": placed, "lora_dropout": 0.1, "fan_in_fan_out": family == "gpt2", **config}
    if family in ENCODERS:
        settings["task_type"] = "SEQ_CLS"
    torch.manual_seed(1)
    model = get_peft_model(base, LoraConfig(r=4, **settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(0.05 * torch.randn(parameter.shape))
    return model


class Enter(TrainerCallback):
    """What a placed trainer does: the entry at the beginning of training, the watch over its steps."""

    def __init__(self, model: Any, entry: int | None, above: Any = "keep") -> None:
        stack = find_layers(model)
        self.entry = None if entry is None else GradientEntry(model, stack, entry, checkpointing_above=above)
        self.watch = BackwardWatch(model, stack)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.watch.__enter__()
        if self.entry is not None:
            self.entry.__enter__()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.watch.__exit__(None, None, None)
        if self.entry is not None:
            self.entry.__exit__(None, None, None)


def switching(model: Any, change: str) -> Any:
    """The method that enables or disables checkpointing, by the name that the installed transformers has for it."""
    return getattr(model, f"{current_name()}_{change}")


def arguments(path: Path, **changes: Any) -> TrainingArguments:
    values = {
        "output_dir": str(path),
        "max_steps": 20,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "seed": 3,
    }
    return TrainingArguments(**renamed(values | changes))


def trained(
    family: str,
    path: Path,
    entry: int | None,
    *,
    above: str = "keep",
    layers: list[int] | None = None,
    **changes: Any,
) -> tuple[dict[str, torch.Tensor], tuple[int, ...]]:
    """Weights after training, and the layers that ran backward."""
    model = adapted(family, layers)
    callback = Enter(model, entry, above)
    trainer = Trainer(
        model=model,
        args=arguments(path, **changes),
        train_dataset=tiny_examples(16, encoder=family in ENCODERS),
        data_collator=collate,
        callbacks=[callback],
    )
    trainer.train()
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    return weights, callback.watch.layers


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different, different[:3]


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bert"])
def test_weights_after_twenty_steps_are_bit_equal(family: str, checkpointing: str, tmp_path: Path) -> None:
    changes = CHECKPOINTING[checkpointing] | {"gradient_accumulation_steps": 4 if family == "llama" else 1}
    without, _ = trained(family, tmp_path, None, **changes)
    moved, backward = trained(family, tmp_path, 2, **changes)
    assert_same(without, moved)
    assert backward == (2, 3)


@pytest.mark.parametrize("family", [f for f in (*CAUSAL, *ENCODERS) if f not in {"llama", "gpt2", "opt", "bert"}])
def test_every_family_with_checkpointing(family: str, tmp_path: Path) -> None:
    changes = CHECKPOINTING["non-reentrant"] | {"max_steps": 5}
    without, everywhere = trained(family, tmp_path, None, **changes)
    moved, backward = trained(family, tmp_path, 2, **changes)
    assert_same(without, moved)
    assert everywhere == (0, 1, 2, 3)  # what the entry is for: the host runs all layers backward
    assert backward == (2, 3)


@pytest.mark.parametrize("layers", [[0, 2], [1, 3], [1]])
@pytest.mark.parametrize("checkpointing", ["reentrant", "non-reentrant"])
def test_any_entry(layers: list[int], checkpointing: str, tmp_path: Path) -> None:
    changes = CHECKPOINTING[checkpointing] | {"max_steps": 4}
    without, _ = trained("llama", tmp_path, None, layers=layers, **changes)
    moved, backward = trained("llama", tmp_path, layers[0], layers=layers, **changes)
    assert_same(without, moved)
    assert backward == tuple(range(layers[0], 4))


@pytest.fixture
def unpinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no accelerator torch cannot pin memory, which transformers asks for whatever the machine."""
    from transformers import modeling_utils

    def save_on_cpu(*, pin_memory: bool, device_type: str) -> Any:
        return torch.autograd.graph.save_on_cpu(pin_memory=False, device_type=device_type)

    monkeypatch.setattr(modeling_utils, "save_on_cpu", save_on_cpu)


@pytest.mark.skipif(current_name() == OLD, reason="transformers 5.23 and later")
@pytest.mark.usefixtures("unpinned")
@pytest.mark.parametrize(("entry", "above"), [(1, "keep"), (2, "keep"), (2, "off")])
@pytest.mark.parametrize("kind", PARTLY)
def test_layers_that_are_checkpointed_partly_or_offloaded(kind: str, above: str, entry: int, tmp_path: Path) -> None:
    changes = {"activation_checkpointing": True, "activation_checkpointing_kwargs": PARTLY[kind], "max_steps": 3}
    layers = list(range(entry, 4))
    without, everywhere = trained("llama", tmp_path, None, layers=layers, **changes)
    moved, backward = trained("llama", tmp_path, entry, above=above, layers=layers, **changes)
    assert_same(without, moved)
    assert everywhere == (0, 1, 2, 3)
    assert backward == tuple(layers)


@pytest.mark.parametrize("checkpointing", ["reentrant", "non-reentrant"])
def test_checkpointing_off_above_the_entry_changes_no_weight(checkpointing: str, tmp_path: Path) -> None:
    changes = CHECKPOINTING[checkpointing] | {"max_steps": 5}
    without, _ = trained("llama", tmp_path, None, **changes)
    off, backward = trained("llama", tmp_path, 2, above="off", **changes)
    assert_same(without, off)
    assert backward == (2, 3)


def state_of(model: Any) -> list[Any]:
    """Every hook, in order, and every checkpointing flag, with where it stands."""
    return [
        (
            name,
            list(module._forward_hooks.items()),
            list(module._forward_pre_hooks.items()),
            list(module._forward_hooks_with_kwargs.items()),
            vars(module).get("gradient_checkpointing"),
            "gradient_checkpointing" in vars(module),
        )
        for name, module in model.named_modules()
    ]


def hooked(family: str = "llama") -> tuple[Any, LayerStack]:
    """A model on which hosts called `enable_input_require_grads` repeatedly, a user's hook in between."""
    model = adapted(family)
    model.enable_input_require_grads()
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: None)
    model.get_base_model().enable_input_require_grads()
    switching(model.base_model.model, "enable")()
    return model.train(), find_layers(model)


def test_all_input_gradient_hooks_are_silenced_and_put_back_exactly() -> None:
    model, stack = hooked()
    found = state_of(model)
    assert len(input_gradient_hooks(model)) == 3
    entry = GradientEntry(model, stack, 2)
    for _ in range(2):  # it can be entered again
        with entry:
            assert input_gradient_hooks(model) == []
            assert [layer.gradient_checkpointing for layer in stack.layers] == [False, False, True, True]
        assert state_of(model) == found


def test_undone_when_the_body_fails() -> None:
    model, stack = hooked()
    found = state_of(model)
    undone = GradientEntry(model, stack, 2, checkpointing_above="off")
    with pytest.raises(ValueError, match="input_ids"), undone:
        model(no_such_argument=True)
    assert state_of(model) == found


def test_a_hook_that_its_owner_removes_meanwhile_stays_removed() -> None:
    model, stack = hooked()
    with GradientEntry(model, stack, 2):
        model.get_base_model().disable_input_require_grads()
    assert len(input_gradient_hooks(model)) == 2


def test_hosts_that_toggle_checkpointing_within_a_step_are_followed() -> None:
    """TRL switches checkpointing off for a reference pass and on again, hooks included."""
    model, stack = hooked()
    batch = collate(tiny_examples(2))
    with GradientEntry(model, stack, 2), BackwardWatch(model, stack) as watch:
        model(**batch).loss.backward()
        switching(model.get_base_model(), "disable")()
        switching(model.get_base_model(), "enable")()
        model(**batch).loss.backward()
    assert watch.layers == (2, 3)


def test_the_prefix_has_no_graph() -> None:
    model, stack = hooked()
    seen: list[bool] = []
    for layer in stack.layers:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    with GradientEntry(model, stack, 2):
        model(**collate(tiny_examples(2)))
    assert seen == [False, False, True, True]


def test_the_cause_of_a_backward_below_the_entry_is_named() -> None:
    batch = collate(tiny_examples(2))
    model, stack = hooked()
    with BackwardWatch(model, stack) as watch:
        model(**batch).loss.backward()
    assert watch.layers == (0, 1, 2, 3)
    cause = cause_of(model, stack, 2, watch.layers)
    assert cause is not None
    assert "layers 0–1 of 0–3" in cause
    assert "embed_tokens" in cause
    assert cause_of(model, stack, 0, watch.layers) is None

    model = adapted("llama", layers=[1, 2])
    with BackwardWatch(model, find_layers(model)) as watch:
        model(**batch).loss.backward()
    cause = cause_of(model, find_layers(model), 2, watch.layers)
    assert cause is not None
    assert "layer 1 of 0–3" in cause
    assert "trainable (`base_model.model.model.layers.1" in cause


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"modules_to_save": ["embed_tokens"]}, "`modules_to_save`"),
        ({"trainable_token_indices": [1, 2]}, "`trainable_token_indices`"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "layer 2"),
        ({"bias": "all"}, "trained"),
    ],
)
def test_trained_parameters_below_are_an_obstacle(config: dict[str, Any], words: str) -> None:
    model = adapted("opt" if "bias" in config else "llama", **config)
    stack = find_layers(model)
    obstacle = find_obstacle(model, stack, 2)
    assert obstacle is not None
    assert words in obstacle
    found = state_of(model)
    with pytest.raises(PlacementError, match="gradient_entry: false"):
        GradientEntry(model, stack, 2).__enter__()
    assert state_of(model) == found


@pytest.mark.parametrize(("family", "head"), [("llama", "lm_head"), ("bert", "classifier")])
def test_a_trained_head_is_no_obstacle(family: str, head: str) -> None:
    model = adapted(family, modules_to_save=[head])
    assert any(head in name and p.requires_grad for name, p in model.named_parameters())
    assert find_obstacle(model, find_layers(model), 2) is None
    assert find_obstacle(model, find_layers(model), 3) is not None  # layer 2 is adapted, and below 3


def test_sharding_and_offloading_are_obstacles(tmp_path: Path) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        apply_activation_checkpointing,
        checkpoint_wrapper,
    )

    model = adapted("llama")
    stack = find_layers(model)
    args = arguments(tmp_path)
    assert find_obstacle(model, stack, 2, args) is None
    args.layer_offloading = True
    assert "layer_offloading" in str(find_obstacle(model, stack, 2, args))
    layers = {id(layer) for layer in stack.layers}
    apply_activation_checkpointing(
        model, checkpoint_wrapper_fn=checkpoint_wrapper, check_fn=lambda module: id(module) in layers
    )
    assert "FSDP" in str(find_obstacle(model, stack, 2))


def test_zero3_is_an_obstacle() -> None:
    model = adapted("llama")
    next(model.parameters()).ds_id = 0  # the mark that DeepSpeed puts on a parameter that it shards
    assert "ZeRO-3" in str(find_obstacle(model, find_layers(model), 2))


def test_choice_of_checkpointing_above_the_entry() -> None:
    assert choose_checkpointing("off", peak_off_bytes=None, baseline_peak_bytes=None)[0] == "off"
    assert choose_checkpointing("keep", peak_off_bytes=1, baseline_peak_bytes=2)[0] == "keep"
    assert choose_checkpointing("auto", peak_off_bytes=1, baseline_peak_bytes=2)[0] == "off"
    assert choose_checkpointing("auto", peak_off_bytes=3, baseline_peak_bytes=2)[0] == "keep"
    assert choose_checkpointing("auto", peak_off_bytes=None, baseline_peak_bytes=2)[0] == "keep"


def in_nf4(model: Any, path: Path) -> Any:
    """The same weights, loaded as QLoRA users load them."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model.save_pretrained(path / "base")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    return AutoModelForCausalLM.from_pretrained(path / "base", quantization_config=config, device_map={"": "cpu"})


def sft(path: Path, entry: int | None, *, nf4: bool = False, **changes: Any) -> tuple[dict[str, torch.Tensor], Any]:
    """TRL's own defaults (checkpointing on, fused loss), LoRA built inside the trainer."""
    from trl import SFTConfig, SFTTrainer

    model = tiny_model("llama", hidden_size=64, intermediate_size=64)
    config = SFTConfig(
        output_dir=str(path / "run"),
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=3,
        **{"max_steps": 20, **renamed(changes)},
    )
    torch.manual_seed(5)
    trainer = SFTTrainer(
        model=in_nf4(model, path) if nf4 else model,
        args=config,
        train_dataset=Dataset.from_list([{"text": f"row {i} " + "word " * (i % 5)} for i in range(16)]),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], layers_to_transform=PLACED),
    )
    callback = Enter(trainer.model, entry)
    trainer.add_callback(callback)
    trainer.train()
    weights = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    return weights, callback.watch.layers


@uses_trl
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 4, "max_steps": 6},
        {"activation_checkpointing_kwargs": {"use_reentrant": True}},
        {"packing": True, "max_length": 32, "max_steps": 6},
    ],
    ids=["defaults", "accumulation", "reentrant", "packing"],
)
def test_trl_weights_are_bit_equal(changes: dict[str, Any], tmp_path: Path) -> None:
    without, everywhere = sft(tmp_path, None, **changes)
    moved, backward = sft(tmp_path, 2, **changes)
    assert_same(without, moved)
    assert everywhere == (0, 1, 2, 3)
    assert backward == (2, 3)


@uses_trl
def test_trl_qlora_weights_are_bit_equal(tmp_path: Path) -> None:
    without, everywhere = sft(tmp_path, None, nf4=True, max_steps=6)
    moved, backward = sft(tmp_path, 2, nf4=True, max_steps=6)
    assert_same(without, moved)
    assert everywhere == (0, 1, 2, 3)
    assert backward == (2, 3)


def test_two_ranks_train_the_same_weights(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    tests = Path(__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tests), *sys.path])}
    worker = tests / "anatomy" / "two_ranks.py"
    done = subprocess.run([*command, str(worker), str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt")
        assert_same(found["without"], found["moved"])
        assert found["everywhere"] == (0, 1, 2, 3)
        assert found["backward"] == (2, 3)
