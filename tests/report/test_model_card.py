"""The section of an adapter's model card, through real PEFT models and real trainers."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, metadata_load

from adapted import lora_config, with_adapters
from layercard.pipeline.during.callback import detach
from layercard.report.model_card import BEGIN, END, HEADING, CardSection, section, update_card, with_section
from reports import full_report, short_report
from tiny import tiny_model
from trainers import make_trainer, placed, train

LAYERS = (2, 3)


def _sections(folder: Path) -> int:
    text = (folder / "README.md").read_text()
    assert text.count(BEGIN) == text.count(END) == text.count(HEADING)
    return text.count(BEGIN)


def test_every_card_that_peft_or_the_trainer_writes_has_it_once(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=2)
    run = placed(trainer, LAYERS)
    train(trainer)
    trainer.save_model(str(tmp_path / "saved"))
    run.host.model.save_pretrained(str(tmp_path / "elsewhere"))
    run.host.model.save_pretrained(str(tmp_path / "elsewhere"))
    for name in ("checkpoint-2", "checkpoint-4", "saved", "elsewhere"):
        assert _sections(tmp_path / name) == 1, name
    assert "had not ended" in (tmp_path / "checkpoint-2" / "README.md").read_text()
    final = (tmp_path / "saved" / "README.md").read_text()
    assert "had not ended" not in final and "layers_to_transform=[2, 3]" in final
    assert metadata_load(tmp_path / "saved" / "README.md")["library_name"] == "peft"


def test_the_card_that_is_pushed_has_it(tmp_path):
    trainer = make_trainer(tmp_path)
    placed(trainer, LAYERS)
    train(trainer)
    trainer.save_model()
    assert _sections(tmp_path) == 1
    trainer.create_model_card(model_name="mine")  # what `push_to_hub` calls last, which writes the file anew
    assert _sections(tmp_path) == 1


def test_a_card_of_an_earlier_run_gets_the_new_section_when_training_ends(tmp_path):
    earlier = section(full_report())
    (tmp_path / "README.md").write_text(f"---\nlicense: mit\n---\n# Mine\n\n{earlier}\n## After\n")
    trainer = make_trainer(tmp_path)
    placed(trainer, LAYERS)
    train(trainer)
    text = (tmp_path / "README.md").read_text()
    assert _sections(tmp_path) == 1 and "layers 2–3 of 0–3" in text
    assert not set(earlier.splitlines()) & {line for line in text.splitlines() if line.startswith("| placed")}
    assert text.startswith("---\nlicense: mit\n---\n# Mine") and text.endswith("## After\n")


def test_leaving_gives_both_their_own_methods_back(tmp_path):
    trainer = make_trainer(tmp_path)
    run = placed(trainer, LAYERS)
    assert "create_or_update_model_card" in vars(run.host.model) and "create_model_card" in vars(trainer)
    detach(run)
    assert "create_or_update_model_card" not in vars(run.host.model) and "create_model_card" not in vars(trainer)


def test_a_copied_or_pickled_model_takes_no_trainer_along_and_writes_its_own_card(tmp_path):
    trainer = make_trainer(tmp_path)
    joined = CardSection(trainer.model, trainer)
    joined.join()
    joined.tell(full_report())
    pickled = pickle.dumps(trainer.model)
    assert b"TrainingArguments" not in pickled
    for number, model in enumerate((copy.deepcopy(trainer.model), pickle.loads(pickled))):
        assert vars(model)["create_or_update_model_card"]._owner is model
        model.save_pretrained(str(tmp_path / str(number)))
        assert _sections(tmp_path / str(number)) == 1


@pytest.mark.parametrize(
    "text", ["", "# Title\n", "# Title", "# T\n\n### Framework versions\n\n- PEFT 0.21.2", "a\n\n"]
)
def test_a_second_section_replaces_the_first_and_leaves_the_rest(text):
    one, two = section(full_report()), section(short_report())
    first = with_section(text, one)
    assert with_section(first, one) == first
    second = with_section(first, two)
    assert second == with_section(text, two)
    assert second.replace(two, "").split() == text.split()
    twice = with_section(f"{first}\n{one}", two)
    assert twice.count(BEGIN) == 1


def test_front_matter_stays_valid_and_as_it_was(tmp_path):
    matter = "---\nbase_model: me/model\ntags:\n- lora\nlicense: apache-2.0\n---\n"
    (tmp_path / "README.md").write_text(f"{matter}\n# Adapter\n")
    before = ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert update_card(tmp_path, section(full_report()))
    assert ModelCard.load(tmp_path / "README.md").data.to_dict() == before
    assert (tmp_path / "README.md").read_text().startswith("---\n")


def test_a_card_that_cannot_be_read_is_left_and_said(tmp_path, caplog):
    broken = "---\n[not: yaml\n---\n# Mine\n"
    (tmp_path / "README.md").write_text(broken)
    assert update_card(tmp_path, section(full_report()))
    assert (tmp_path / "README.md").read_text() == broken
    assert "did not get its section" in caplog.text
    assert not update_card(tmp_path / "none", "x")


def test_nothing_private_stands_in_it():
    text = section(
        full_report(run={"command": "secret command", "data": {"name": "private-data"}, "model": {"id": "m"}})
    )
    assert "secret" not in text and "private-data" not in text


def test_there_is_no_section_before_there_is_a_report(tmp_path):
    trainer = make_trainer(tmp_path)
    model = with_adapters(tiny_model("llama"), lora_config("llama"))
    joined = CardSection(model, trainer)
    joined.join()
    model.save_pretrained(str(tmp_path / "none"))  # no report yet, so no section
    assert BEGIN not in (tmp_path / "none" / "README.md").read_text()
    joined.leave()
