"""A run of Axolotl that a Layer Card of its model places, named in the YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import check_files, read_json, sft, train_here, write

from layercard.cards.fingerprint import model_fingerprint
from layercard.cards.strata import regimes
from own_card import own_card, put
from tiny import tiny_model, tiny_tokenizer


def test_a_card_of_the_model_places_the_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERCARD_CARDS", str(tmp_path / "cards"))
    tiny_model("llama", num_layers=8, max_position_embeddings=256).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    base = {"base_model": str(tmp_path / "model"), "max_steps": 2}
    probed = train_here(write(sft(folder, **base, lora_layers="high"), tmp_path / "probed"))
    resnorm, targets = probed.scores["resnorm"].importance, list(probed.statistics.targets)
    model = model_fingerprint(probed.host.model, model_id="org/tiny")
    lora = {"rank": 4, "alpha": 8, "targets": targets}
    put(tmp_path / "cards", own_card(resnorm, model=model, lora=lora, status="community"))
    chosen = {"cards": "tiny/numbers", "prefer": "quality"}
    placed = train_here(write(sft(folder, **base, lora_layers=chosen), tmp_path / "placed"))
    check_files(tmp_path / "placed", list(regimes(resnorm)["high"]))
    saved = read_json(tmp_path / "placed" / "placement.json")
    assert (saved["evidence"], saved["cards"]) == ("measured card", ["tiny/numbers"])
    assert placed.placement.expected["share_kept"] == pytest.approx(0.99)
    off = train_here(write(sft(folder, **base, lora_layers={"cards": False}), tmp_path / "off"))  # YAML's `off`
    assert off.placement.evidence == "none"
