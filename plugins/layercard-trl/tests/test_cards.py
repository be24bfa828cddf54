"""Layer Cards through TRL's flags: a whole run of `trl sft` that a card of its model places."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layercard.cards.fingerprint import model_fingerprint
from layercard.cards.strata import regimes
from layercard.errors import CardError, SettingsError
from layercard_trl.sft import run
from own_card import deep_model, own_card, put
from tiny import tiny_tokenizer


@pytest.fixture
def flags(tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("LAYERCARD_CARDS", str(tmp_path / "cards"))
    deep_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    given = {"model_name_or_path": tmp_path / "model", "dataset_name": data_folder, "max_length": 40, "max_steps": 2}
    given |= {"per_device_train_batch_size": 2, "lora_r": 4, "lora_alpha": 8, "report_to": "none", "bf16": "false"}
    pairs = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    return [*pairs, "--use_cpu", "--use_peft", "--lora_target_modules", "q_proj", "v_proj", "down_proj"]


def test_a_card_named_on_the_command_line_places_the_run(flags: list[str], tmp_path: Path) -> None:
    probed = run([*flags, "--output_dir", str(tmp_path / "probed"), "--lora_layers", "high"])
    resnorm = probed.scores["resnorm"].importance
    model = model_fingerprint(probed.host.model, model_id="org/tiny")
    put(tmp_path / "cards", own_card(resnorm, model=model, status="community", training={"max_length": 64}))
    placed = run(
        [*flags, "--output_dir", str(tmp_path / "placed"), "--lora_layers", "auto", "--lora_layers_prefer", "quality",
         "--lora_layers_cards", "tiny/numbers"]
    )  # fmt: skip
    assert placed.layers == regimes(resnorm)["high"]
    saved = json.loads((tmp_path / "placed" / "placement.json").read_text())
    assert (saved["evidence"], saved["cards"]) == ("measured card", ["tiny/numbers"])
    assert saved["expected"]["cards"][0]["differences"] == ["sequence length 40 here, 64 on the card"]
    config = json.loads((tmp_path / "placed" / "adapter_config.json").read_text())
    assert config["layers_to_transform"] == list(placed.layers)
    let_in = run(
        [*flags, "--output_dir", str(tmp_path / "let in"), "--lora_layers", "auto", "--lora_layers_community_cards",
         "--lora_layers_probe_budget", "0.5", "--max_steps", "34",
         "--lora_layers_min_spearman", "0.95"]
    )  # fmt: skip
    assert let_in.placement.cards == ("tiny/numbers",)
    without = run(
        [*flags, "--output_dir", str(tmp_path / "off"), "--lora_layers", "auto", "--lora_layers_cards", "off"]
    )
    assert without.placement.evidence == "none"


def test_what_is_wrong_with_a_named_card_stops_the_run(flags: list[str], tmp_path: Path) -> None:
    out = ["--output_dir", str(tmp_path / "out"), "--lora_layers", "auto"]
    (tmp_path / "cards" / "tiny").mkdir(parents=True)
    (tmp_path / "cards" / "tiny" / "numbers.json").write_text('{"schema_version": 7}')
    with pytest.raises(CardError, match=r"tiny/numbers.*schema_version"):
        run([*flags, *out, "--lora_layers_cards", "tiny/numbers"])
    with pytest.raises(SettingsError, match="min_spearman"):
        run([*flags, *out, "--lora_layers_min_spearman", "1.5"])
    assert not (tmp_path / "out" / "placement.json").exists()
