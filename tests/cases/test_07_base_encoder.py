"""A base encoder with texts and labels is a classifier with a new head, and that is said; `--task` names any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from brought import BASE, ENCODERS, TEXT, closing_tokenizer, made, save, write
from command_line import Run, runner
from layercard.cli.loading import load_model, settled, skeleton
from layercard.cli.options import DataSource, ModelSource
from layercard.data import tokenize_records

SST = [{"text": f"text {i}", "label": i % 2} for i in range(6)]
BODIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "RobertaForMaskedLM": (lambda: made(hf.AutoModelForMaskedLM, ENCODERS["roberta"]()), {}),
    "DebertaV2, no architectures": (
        lambda: made(hf.AutoModelForMaskedLM, ENCODERS["deberta-v2"]()),
        {"architectures": None},
    ),
    "ElectraForPreTraining": (lambda: made(hf.AutoModelForPreTraining, ENCODERS["electra"]()), {}),
    "BertModel": (lambda: made(hf.AutoModel, ENCODERS["bert"]()), {}),
    "BertForPreTraining": (lambda: made(hf.AutoModelForPreTraining, ENCODERS["bert"]()), {}),
    "DistilBertModel": (lambda: made(hf.AutoModel, ENCODERS["distilbert"]()), {}),
    "LlamaModel": (lambda: made(hf.AutoModel, hf.LlamaConfig(**TEXT)), {}),
}
LABELS: dict[str, tuple[list[Any], str]] = {
    "classification": ([0, 1, 2] * 2, "new head of 3 classes"),
    "regression": ([0.5, 1.5, -2.0] * 2, "new head of 1 output"),
    "multi-label": ([[0, 1, 1, 0], [1, 0, 0, 0]] * 3, "new head of 4 classes"),
}


# a module that reads something else than its layer's tokens has no energy by token
pytestmark = pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


@pytest.mark.parametrize("body", sorted(BODIES))
def test_rows_with_labels_make_it_a_classifier(run: Run, tmp_path: Path, body: str) -> None:
    build, config = BODIES[body]
    save(tmp_path / "model", build(), **config)
    rows = write(tmp_path / "sst.jsonl", SST)
    ran = run("plan", tmp_path / "model", "--dataset", rows, "--lora-layers", "high", "--json")
    assert ran.code == 0, ran.err
    assert "becomes a classification model with a new head of 2 classes, since rows hold `label`" in ran.words
    assert ran.document["placement"]["score"] == "resnorm"


@pytest.mark.parametrize("task", sorted(LABELS))
def test_the_labels_decide_what_the_new_head_predicts(run: Run, tmp_path: Path, task: str) -> None:
    labels, said = LABELS[task]
    save(tmp_path / "model", made(hf.AutoModel, ENCODERS["bert"]()))
    rows = write(tmp_path / "rows.jsonl", [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)])
    ran = run("probe", tmp_path / "model", "--dataset", rows, "--json")
    assert ran.code == 0, ran.err
    assert said in ran.words
    assert f"a {task} model" in ran.words


def test_words_with_tags_make_it_a_tagger(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "model", made(hf.AutoModelForMaskedLM, ENCODERS["bert"]()))
    rows = [{"tokens": ["Ada", "sings"], "ner_tags": ["B-PER", "O"]}, {"tokens": ["so"], "ner_tags": ["O"]}] * 3
    ran = run("probe", tmp_path / "model", "--dataset", write(tmp_path / "rows.jsonl", rows), "--json")
    assert ran.code == 0, ran.err
    assert "Classes of `ner_tags`: B-PER=0, O=1." in ran.words


def test_a_new_head_has_the_names_and_the_problem_of_the_labels(tmp_path: Path) -> None:
    save(tmp_path / "model", made(hf.AutoModel, ENCODERS["bert"]()))
    rows = write(tmp_path / "rows.csv", [{"text": "a", "label": "no"}, {"text": "b", "label": "yes"}])
    source = settled(
        ModelSource(str(tmp_path / "model"), "auto", False, "cpu"),
        DataSource(str(rows), None, "train", {}, None),
        lambda line: None,
    )
    first, again = load_model(source), load_model(source)
    for model in (first, skeleton(source.name, source.purpose)):
        assert model.config.id2label == {0: "no", 1: "yes"}
        assert model.config.problem_type == "single_label_classification"
    assert torch.equal(first.classifier.weight, again.classifier.weight)  # the same command gives the same scores


def test_without_labels_it_stays_a_masked_language_model(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "model", made(hf.AutoModelForMaskedLM, ENCODERS["roberta"]()))
    rows = write(tmp_path / "rows.jsonl", [{"text": f"text {i}"} for i in range(6)])
    ran = run("probe", tmp_path / "model", "--dataset", rows)
    assert ran.code == 0, ran.err
    assert "new" not in ran.words


def test_weights_that_were_not_saved_are_named(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "model", made(hf.AutoModelForPreTraining, ENCODERS["electra"]()))
    rows = write(tmp_path / "rows.jsonl", [{"text": f"text {i}"} for i in range(6)])
    assert (
        "were not saved with it and are new: generator_lm_head.bias"
        in run("probe", tmp_path / "model", "--dataset", rows).words
    )


def test_the_task_can_be_named(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "model", made(hf.AutoModelForMaskedLM, ENCODERS["roberta"]()))
    rows = write(tmp_path / "sst.jsonl", SST)
    masked = run("probe", tmp_path / "model", "--dataset", rows, "--task", "masked")
    assert masked.code == 0, masked.err
    assert "The column `label` is not read" in masked.words
    assert "a regression model" in run("probe", tmp_path / "model", "--dataset", rows, "--task", "regression").words
    wrong = run("plan", tmp_path / "model", "--task", "seq2seq")
    assert (wrong.code, "no such head for `roberta`" in wrong.words) == (1, True)


def test_a_causal_model_says_that_it_reads_no_labels_and_becomes_a_classifier_when_told(
    run: Run, tmp_path: Path
) -> None:
    save(tmp_path / "model", made(hf.AutoModelForCausalLM, hf.LlamaConfig(**TEXT)))
    rows = write(tmp_path / "sst.jsonl", SST)
    assert "The column `label` is not read" in run("probe", tmp_path / "model", "--dataset", rows).words
    told = run("probe", tmp_path / "model", "--dataset", rows, "--task", "classification")
    assert told.code == 0, told.err
    assert "LlamaForCausalLM becomes a classification model" in told.words


def test_plans_by_depth_need_no_data(run: Run, tmp_path: Path) -> None:
    for name in ("DebertaV2, no architectures", "ElectraForPreTraining", "BertModel"):
        build, config = BODIES[name]
        save(tmp_path / name, build(), **config)
        ran = run("plan", tmp_path / name, "--lora-layers", "last", "--json")
        assert (ran.code, ran.document["placement"]["layers"]) == (0, [1]), ran.err


@pytest.mark.parametrize(
    ("auto", "named"),
    [(hf.AutoModelForQuestionAnswering, "Question answering"), (hf.AutoModelForMultipleChoice, "Multiple choice")],
)
def test_what_is_not_read_is_refused_by_name_and_planned_by_depth(
    run: Run, tmp_path: Path, auto: Any, named: str
) -> None:
    save(tmp_path / "model", made(auto, hf.BertConfig(**BASE)))
    rows = write(tmp_path / "rows.jsonl", [{"question": "a", "context": "b", "answers": {"text": ["b"]}}] * 4)
    ran = run("probe", tmp_path / "model", "--dataset", rows)
    assert ran.code == 1
    assert f"{named} is not read from a dataset here" in ran.words
    assert run("plan", tmp_path / "model", "--lora-layers", "last").code == 0


def test_two_texts_are_told_apart_as_the_tokenizer_does() -> None:
    tokenizer = closing_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # as of BERT's
    rows = [{"sentence1": "ab", "sentence2": "c", "label": 1}]
    columns = {"text": "sentence1", "text_pair": "sentence2"}
    (tokens,) = tokenize_records(rows, tokenizer, task="classification", columns=columns)
    wanted = tokenizer("ab", "c")
    assert tokens == {"input_ids": wanted["input_ids"], "token_type_ids": wanted["token_type_ids"], "labels": 1}
    assert set(tokens["token_type_ids"]) == {0, 1}
