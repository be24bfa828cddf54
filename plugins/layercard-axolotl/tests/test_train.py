"""Runs in this process, through the function that `axolotl train` calls in its own: cases, files, numbers."""

from __future__ import annotations

import pytest
import torch
from runs import LINEAR, PLUGIN, check_files, kto, read_json, sft, train_here, write

from layercard.errors import HostError, NothingToLearnError, PlacementError, QualityError, SettingsError
from layercard.placement.placement import LayerPlacement
from layercard_axolotl import compat

REENTRANT = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
NON_REENTRANT = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
SOME = ("q_proj", "down_proj")
LISTED = {"lora_target_linear": None, "lora_target_modules": list(SOME)}


@pytest.mark.parametrize(
    ("changes", "layers", "targets"),
    [
        ({"lora_layers": [2]} | REENTRANT, [2], LINEAR),
        ({"lora_layers": "last"} | LISTED | NON_REENTRANT, [2, 3], SOME),
        ({"lora_layers": [0, 3]} | REENTRANT, [0, 3], LINEAR),
        ({"lora_layers": "first", "sample_packing": True, "multipack_real_batches": True}, [0, 1], LINEAR),
        ({"lora_layers": [1, 2], "lora_target_linear": None, "lora_target_modules": "all-linear"}, [1, 2], LINEAR),
        ({"lora_layers": [3], "load_in_8bit": True} | NON_REENTRANT, [3], LINEAR),
    ],
    ids=["reentrant", "listed targets", "from layer 0", "packed rows", "all-linear", "8 bit"],
)
def test_adapters_stand_in_the_chosen_layers_alone(folder, tmp_path, changes, layers, targets):
    run = train_here(write(sft(folder, **changes), tmp_path / "out"))
    report = check_files(tmp_path / "out", list(run.layers), targets)
    assert list(run.layers) == layers
    assert report["gradient_entry"]["moved"] is True
    assert report["backward_layers"] == list(range(run.layers[0], 4))


def test_all_layer_lora_is_measured_in_the_same_run(folder, tmp_path):
    config = sft(
        folder, lora_layers={"indices": [3], "measure_budget": 0.5, "guard": False}, max_steps=400, num_epochs=20
    )
    report = train_here(write(config, tmp_path / "out")).report
    assert report.step_speedup is not None
    assert report.pairs >= 3
    assert report.baseline.trainable_parameters == 4 * report.placed.trainable_parameters
    assert not report.partial


def test_the_key_has_the_guard_try_a_placement_and_stop_it(folder, tmp_path):
    guarded = {"indices": [3], "measure": False, "guard_budget": 0.5}
    stopping = guarded | {"on_quality_loss": "stop", "quality_threshold": 1.0}
    raised = {"learning_rate": 0.01, "max_steps": 60, "num_epochs": 20}
    quality = train_here(write(sft(folder, lora_layers=guarded, **raised), tmp_path / "warned" / "out")).report.quality
    assert quality["kind"] == "predicted"
    assert quality["heldout_loss"]["all_layers"] < quality["heldout_loss"]["before"]
    with pytest.raises(QualityError, match=r"layers? 3 of 0–3"):
        train_here(write(sft(folder, lora_layers=stopping, **raised), tmp_path / "stopped" / "out"))
    assert read_json(tmp_path / "stopped" / "out" / "report.json")["quality"]["reaction"] == "stopped"
    assert not (tmp_path / "stopped" / "out" / "adapter_model.safetensors").exists()


def test_packs_are_probed_as_documents(folder, tmp_path):
    """Statistics are those of unpacked rows, unless the probe found that attention crosses from one to the next."""
    lora_layers = {"strategy": "high", "num_layers": 2, "probe_examples": 12}
    runs = [
        train_here(write(sft(folder, lora_layers=lora_layers, sample_packing=packed), tmp_path / str(packed) / "out"))
        for packed in (False, True)
    ]
    assert [run.statistics.examples for run in runs] == [12, 12]
    _check_what_the_guard_reads(runs[1].host)
    alone, packed = (torch.tensor(run.statistics.energy) for run in runs)  # adapters' initial values have no part in it
    if not runs[1].statistics.notes:
        torch.testing.assert_close(packed, alone, rtol=1e-3, atol=0)


def test_a_packed_stream_is_probed_timed_and_trained(folder, tmp_path):
    """The columns that the model reads are asked for by the probe, the timing and the training; Axolotl answers once."""
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(f'{{"text": "{i} times {i} is {i * i}"}}\n' for i in range(48)))
    rows = {"path": "json", "data_files": [str(texts)], "split": "train", "text_column": "text"}
    config = sft(
        folder, datasets=None, pretraining_dataset=[{**rows, "type": "pretrain"}], sample_packing=True, max_steps=60,
        lora_layers={"strategy": "high", "num_layers": 2, "measure_budget": 0.5, "guard": False},
    )  # fmt: skip
    run = train_here(write(config, tmp_path / "out"))
    assert run.statistics is not None
    assert check_files(tmp_path / "out", list(run.layers))["step_speedup"] is not None


def _check_what_the_guard_reads(host):
    """Packs to train on, rows to judge by, and a loss of each."""
    updates = host.update_batches(2, held_back=3)
    assert [len(update) for update in updates] == [1, 1]
    assert all(batch["position_ids"].eq(0).sum() > 2 for update in updates for batch, _ in update)
    for batch in host.heldout_batches(4).batches:
        assert bool(host.heldout_loss(host.model, batch).isfinite())


def test_kto_reads_the_wanted_responses(folder, tmp_path):
    run = train_here(write(kto(folder, lora_layers={"strategy": "high", "num_layers": 2}), tmp_path / "out"))
    assert run.host.name.endswith("AxolotlKTOTrainer")
    for batch in run.host.probe_batches(4, 2, seed=0):
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            text = run.host.trainer.processing_class.decode(ids[labels != -100], skip_special_tokens=True)
            assert "x" not in text.replace(" ", "").split("<")[0]
    check_files(tmp_path / "out", list(run.layers))


def test_a_saved_placement_is_taken(folder, tmp_path):
    first = train_here(write(sft(folder, lora_layers=[1, 3]), tmp_path / "first" / "out"))
    saved = tmp_path / "first" / "out" / "placement.json"
    second = train_here(write(sft(folder, lora_layers=str(saved)), tmp_path / "second" / "out"))
    assert second.layers == first.layers
    assert read_json(tmp_path / "second" / "out" / "placement.json")["layers"] == [1, 3]


def test_a_second_run_chooses_anew_and_a_resumed_one_keeps_its_placement(folder, tmp_path):
    out = tmp_path / "out"
    train_here(write(sft(folder, lora_layers=[1, 3], save_strategy="steps", save_steps=1, max_steps=2), out))
    (checkpoint,) = (path for path in out.rglob("checkpoint-1") if path.is_dir())
    kept = read_json(checkpoint / "placement.json")
    assert train_here(write(sft(folder, lora_layers=[0]), out)).layers == (0,)
    resumed = {"resume_from_checkpoint": str(checkpoint), "max_steps": 2}
    again = train_here(write(sft(folder, lora_layers="auto", **resumed), out))
    assert list(again.layers) == kept["layers"] == [1, 3]
    assert again.statistics is None
    with pytest.raises(SettingsError, match=r"`indices` is.*`lora_layers: auto` alone.*`auto_resume_from_checkpoints`"):
        train_here(write(sft(folder, lora_layers=[0], **resumed), out))


@pytest.mark.parametrize("own", [None, [1, 3]])
def test_a_placed_checkpoint_resumed_without_the_key_is_told(folder, tmp_path, caplog, own):
    from layercard_axolotl.plugin import LayerCardPlugin

    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    LayerPlacement((1, 3), 4, "last", None, "so").save(checkpoint / "placement.json")
    cfg = compat.mapping(
        {"output_dir": str(tmp_path), "resume_from_checkpoint": str(checkpoint), "peft_layers_to_transform": own}
    )
    assert LayerCardPlugin().load_datasets(cfg) is None
    assert ("adapts layers 1, 3 of 0–3, and without `lora_layers`" in caplog.text) is (own is None)


def test_where_every_row_was_too_long_the_key_that_dropped_them_is_named(folder, tmp_path):
    with pytest.raises(NothingToLearnError, match=r"longer than `sequence_len` \(4\)"):
        train_here(write(sft(folder, sequence_len=4, lora_layers="high"), tmp_path / "out"))


def test_without_the_key_every_layer_is_adapted(folder, tmp_path):
    assert train_here(write(sft(folder, lora_layers=None), tmp_path / "out")) is None
    assert not (tmp_path / "out" / "placement.json").exists()
    assert "layers_to_transform" in read_json(tmp_path / "out" / "adapter_config.json")
    assert read_json(tmp_path / "out" / "adapter_config.json")["layers_to_transform"] is None


def test_layer_offloading_keeps_the_entry_and_says_so(folder, tmp_path):
    from layercard.anatomy.gradient_entry import find_obstacle

    run = train_here(write(sft(folder, lora_layers=[3]), tmp_path / "out"))
    arguments = run.host.trainer.args
    assert find_obstacle(run.host.model, run.stack, 3, arguments) is None
    arguments.layer_offloading = True
    assert "layer_offloading" in find_obstacle(run.host.model, run.stack, 3, arguments)


def test_an_adapter_to_go_on_from_is_refused_before_anything_loads(folder, tmp_path):
    with pytest.raises(SettingsError, match="`lora_model_dir`"):
        train_here(write(sft(folder, lora_model_dir=str(tmp_path)), tmp_path / "out"))


def test_a_run_whose_placement_did_not_happen_stops(folder, tmp_path, monkeypatch):
    from layercard_axolotl.plugin import LayerCardPlugin

    monkeypatch.setattr(LayerCardPlugin, "post_trainer_create", lambda self, cfg, trainer: None)
    with pytest.raises(HostError, match="no layers were placed"):
        train_here(write(sft(folder), tmp_path / "out"))
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_adapters_outside_the_choice_stop_the_run(folder, tmp_path, monkeypatch):
    """An Axolotl that ignored the written keys would train every layer under a placement's name."""
    from layercard_axolotl import plugin
    from layercard_axolotl.before_adapter import Early

    monkeypatch.setattr(Early, "write", lambda self, cfg: None)
    monkeypatch.setattr(plugin.compat, "fused_kernels", lambda cfg: ["lora_o_kernel"])
    with pytest.raises(PlacementError, match="configuration selects layers 0–3"):
        train_here(write(sft(folder, lora_layers=[3]), tmp_path / "out"))


def test_other_trainers_of_axolotl_are_refused_by_name(folder, tmp_path):
    from axolotl.integrations.diffusion.trainer import DiffusionTrainer

    from layercard import plugins

    trainer = train_here(write(sft(folder, lora_layers=[3]), tmp_path / "out")).host.trainer
    trainer.__class__ = type("Mine", (type(trainer),), {})
    assert plugins.manager().hook.locate_host(trainer=trainer).name.endswith("Mine")
    trainer.__class__ = DiffusionTrainer
    with pytest.raises(HostError, match=f"`{DiffusionTrainer.__name__}` cannot be placed into"):
        plugins.manager().hook.locate_host(trainer=trainer)


def test_the_plugin_is_the_one_that_yaml_names():
    import layercard_axolotl

    module, _, name = PLUGIN.rpartition(".")
    assert module == layercard_axolotl.__name__
    assert getattr(layercard_axolotl, name).__name__ == name
