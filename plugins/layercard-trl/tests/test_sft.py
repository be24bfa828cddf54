from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from layercard.errors import SettingsError
from layercard_trl.sft import parse, run

LAYERS = [1, 3]
KINDS = {
    "lora": [],
    "qlora": ["--load_in_4bit", "--use_bnb_nested_quant", "--dtype", "bfloat16", "--gradient_checkpointing"],
    "packing, accumulation": ["--packing", "--gradient_accumulation_steps", "2"],
    "padding free": ["--padding_free", "--max_length", "none"],
}


@pytest.fixture
def flags(model_folder: Path, data_folder: Path, tmp_path: Path) -> list[str]:
    """What every run has in common; dropout is off, for it would draw differently with fewer adapters."""
    given = {
        "model_name_or_path": model_folder,
        "dataset_name": data_folder,
        "output_dir": tmp_path / "out",
        "max_length": 40,
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.01,
        "lora_dropout": 0,
        "lora_r": 4,
        "report_to": "none",
        "bf16": "false",
    }
    pairs = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    return [*pairs, "--use_cpu", "--use_peft", "--lora_target_modules", "all-linear"]


def hand_written(arguments: list[str], output: Path) -> list[dict[str, float]]:
    """Train with PEFT's own `layers_to_transform`, from the adapter values that all-layer LoRA starts with.

    Returns what the trainer logged.
    """
    from datasets import load_dataset
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from trl import SFTTrainer, get_peft_config, get_quantization_config

    (script, training, model, _, _), _, _ = parse(arguments)
    training.output_dir = str(output)
    training.model_init_kwargs = {"dtype": model.dtype}

    def trainer(layers: list[int] | None) -> SFTTrainer:
        config = get_peft_config(model)
        config.layers_to_transform = layers
        return SFTTrainer(
            model.model_name_or_path,
            args=training,
            train_dataset=load_dataset(script.dataset_name, split="train"),
            quantization_config=get_quantization_config(model),
            peft_config=config,
        )

    everything = get_peft_model_state_dict(trainer(None).model)
    wanted = {name: value for name, value in everything.items() if any(f".layers.{i}." in name for i in LAYERS)}
    placed = trainer(LAYERS)
    set_peft_model_state_dict(placed.model, wanted)
    placed.train()
    placed.save_model()
    return placed.state.log_history


@pytest.mark.parametrize("kind", KINDS)
def test_trains_what_layers_to_transform_trains(flags, tmp_path, kind):
    arguments = [*flags, *KINDS[kind]]
    placed = run([*arguments, "--lora_layers", "1,3", "--no_lora_layers_measure"])
    assert placed.placement.layers == tuple(LAYERS)
    hand_written(arguments, tmp_path / "hand")

    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("out", "hand"))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-6, atol=1e-7, msg=lambda text, n=name: f"{n}: {text}")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["layers_to_transform"] == LAYERS


def test_logs_and_counters_are_those_of_a_run_without_layercard(flags, tmp_path):
    arguments = [*flags, "--max_steps", "20", "--logging_steps", "5"]
    placed = run([*arguments, "--lora_layers", "1,3", "--lora_layers_measure_budget", "0.5"])
    assert placed.report.step_speedup is not None or "step_speedup" in placed.report.unavailable
    ours, theirs = placed.host.trainer.state.log_history, hand_written(arguments, tmp_path / "hand")
    assert len(ours) == len(theirs) == 5
    for mine, other in zip(ours[:-1], theirs[:-1], strict=True):  # the last says how long it took
        assert mine == pytest.approx(other, rel=1e-5)


def test_auto_measures_and_reports(flags, tmp_path):
    placed = run([*flags, "--lora_layers", "auto", "--max_steps", "6", "--lora_layers_measure_budget", "0.5"])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    placement = json.loads((tmp_path / "out" / "placement.json").read_text())
    assert placement["layers"] == list(placed.placement.layers)
    assert not report["partial"]
    assert report == json.loads(json.dumps(placed.report.to_dict()))


def test_resumed_run_keeps_its_layers_and_ends_in_the_same_adapter(flags, tmp_path):
    run([*flags, "--lora_layers", "auto", "--save_steps", "2"])
    first = load_file(tmp_path / "out" / "adapter_model.safetensors")
    resumed = run([*flags, "--lora_layers", "auto", "--resume_from_checkpoint", str(tmp_path / "out" / "checkpoint-2")])
    assert resumed.statistics is None
    second = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-6, atol=1e-7)


def test_without_the_flag_it_trains_as_trl_sft_does(flags, tmp_path):
    from trl.scripts.sft import main, make_parser

    assert run(flags) is None
    other = [str(tmp_path / "trl") if text == str(tmp_path / "out") else text for text in flags]
    main(*make_parser().parse_args_and_config(other))
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("out", "trl"))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value)
    assert not (tmp_path / "out" / "placement.json").exists()


def test_train_is_left_as_it_was(flags):
    from trl import SFTTrainer

    with pytest.raises(SettingsError, match="use_peft"):
        run([text for text in flags if text != "--use_peft"] + ["--lora_layers", "auto"])
    assert "train" not in vars(SFTTrainer)


def test_dataset_mixture_from_yaml(flags, data_folder, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"datasets:\n  - path: json\n    data_files: {data_folder / 'train.jsonl'}\n    columns: [prompt, completion]\n"
        "lora_layers: {strategy: last, num_layers: 2}\nlora_layers_measure: false\n"
    )
    at = flags.index("--dataset_name")
    placed = run([*flags[:at], *flags[at + 2 :], "--config", str(path)])
    assert placed.placement.layers == (2, 3)


@pytest.mark.parametrize(
    ("lora_layers", "strategy", "score"),
    [(["odd_layers"], "odd_layers", None), (["high", "--lora_layers_score", "deep_energy"], "high", "deep_energy")],
    ids=["strategy", "score"],
)
def test_third_party_names_are_enough(flags, lora_layers, strategy, score):
    """layercard-example is installed and nothing names it but its strategy and its score."""
    placed = run([*flags, "--lora_layers", *lora_layers, "--lora_layers_num_layers", "2"])
    assert (placed.placement.strategy, placed.placement.score) == (strategy, score)
    assert {int(key.split(".layers.")[1].split(".")[0]) for key in placed_keys(placed)} == set(placed.layers)


def placed_keys(placed) -> set[str]:
    """The adapter tensors that the run saved."""
    return set(load_file(placed.host.output_dir / "adapter_model.safetensors"))


def test_every_model_card_that_trl_writes_says_which_layers_were_placed(flags, tmp_path):
    from huggingface_hub import ModelCard

    run([*flags, "--lora_layers", "1,3", "--save_strategy", "steps", "--save_steps", "2"])
    out = tmp_path / "out"
    for card in (out, out / "checkpoint-2", out / "checkpoint-4"):
        text = (card / "README.md").read_text()
        assert text.count("## Layer placement") == 1 and "layers 1, 3 of 0–" in text, card
    written = ModelCard.load(out / "README.md")
    assert "had not ended" not in written.text and "TRL" in written.text
    assert written.data.library_name == "peft" and "sft" in written.data.tags
    assert (out / "report.html").exists()
