"""Vision-language models are loaded by the class that their configuration names, and probed on rows of text."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers as hf

from brought import PICTURED, made, save, write
from command_line import Run, runner

CHAT = [
    {"messages": [{"role": "user", "content": f"is {i} odd"}, {"role": "assistant", "content": "yes" * (1 + i % 3)}]}
    for i in range(6)
]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


@pytest.mark.parametrize("family", sorted(PICTURED))
def test_plan_and_probe_take_the_language_layers(run: Run, tmp_path: Path, family: str) -> None:
    path, config = PICTURED[family]
    save(tmp_path / "model", made(hf.AutoModelForImageTextToText, config()))
    planned = run("plan", tmp_path / "model", "--layers-path", path, "--json")
    assert planned.code == 0, planned.err
    assert planned.document["placement"]["num_layers"] == 4
    assert "costs timed on 2 layers" in planned.document["costs"]
    rows = write(tmp_path / "rows.jsonl", CHAT)
    probed = run("probe", tmp_path / "model", "--dataset", rows, "--layers-path", path, "--json")
    assert probed.code == 0, probed.err
    assert probed.document["probe"]["examples"] == len(CHAT)
    assert len(probed.document["scores"]["resnorm"]["importance"]) == 4


def test_without_a_path_every_stack_is_named(run: Run, tmp_path: Path) -> None:
    _, config = PICTURED["llava"]
    save(tmp_path, made(hf.AutoModelForImageTextToText, config()))
    words = run("plan", tmp_path).words
    assert "has 2 stacks of layers" in words
    assert "language_model.layers" in words


@pytest.mark.parametrize("column", ["image", "images"])
def test_rows_with_pictures_are_refused_by_name(run: Run, tmp_path: Path, column: str) -> None:
    path, config = PICTURED["llava"]
    save(tmp_path / "model", made(hf.AutoModelForImageTextToText, config()))
    rows = write(tmp_path / "rows.jsonl", [{**row, column: "cat.png"} for row in CHAT])
    ran = run("probe", tmp_path / "model", "--dataset", rows, "--layers-path", path)
    assert ran.code == 1
    assert f"The dataset has the column `{column}`" in ran.words
    part = [{"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what"}]}]}]
    inside = run("probe", tmp_path / "model", "--dataset", write(tmp_path / "parts.jsonl", part), "--layers-path", path)
    assert "parts.jsonl, line 1: message 0 of `messages` holds a part of type 'image'" in inside.words


def test_models_that_read_no_text_are_refused_by_name(run: Run, tmp_path: Path) -> None:
    audio = hf.WhisperConfig(
        vocab_size=120, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    pictures = hf.ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8
    )
    for name, model, reads in (
        ("whisper", hf.WhisperForConditionalGeneration(audio), "input_features"),
        ("vit", hf.ViTForImageClassification(pictures), "pixel_values"),
    ):
        model.save_pretrained(tmp_path / name)
        ran = run("plan", tmp_path / name)
        assert ran.code == 1
        assert f"which reads `{reads}`; the command line reads text" in ran.words
