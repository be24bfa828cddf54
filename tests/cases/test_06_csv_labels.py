"""Labels mean the same in CSV, JSON lines and Parquet: numbers, truth values, class names, fractions, lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from brought import BASE, save, write
from command_line import Run, runner
from layercard.data import probe_data
from layercard.errors import DataError
from layercard.records import column_values, sample_records
from tiny import tiny_model, tiny_tokenizer

KINDS = ("jsonl", "csv", "parquet")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


def labelled(labels: list[Any], column: str = "label") -> list[dict[str, Any]]:
    return [{"text": f"text {i}", column: label} for i, label in enumerate(labels)]


def classifier(folder: Path, **config: Any) -> Path:
    return save(folder / "model", hf.BertForSequenceClassification(hf.BertConfig(**BASE, **config)))


@pytest.mark.parametrize(
    ("labels", "config"),
    [
        ([0, 1, 1, 0, 1, 0], {}),
        ([0.0, 1.0, 1.0, 0.0], {}),
        ([True, False, True, False], {}),
        ([0.5, 1.25, -3.0, 2.0], {"num_labels": 1}),
        (["neg", "pos", "pos", "neg"], {}),
    ],
)
def test_three_kinds_of_file_give_equal_scores(
    run: Run, tmp_path: Path, labels: list[Any], config: dict[str, Any]
) -> None:
    model = classifier(tmp_path, **config)
    documents = []
    for kind in KINDS:
        ran = run("probe", model, "--dataset", write(tmp_path / f"rows.{kind}", labelled(labels)), "--json")
        assert ran.code == 0, ran.err
        documents.append(ran.document["scores"])
    assert documents[0] == documents[1] == documents[2]


values = st.one_of(
    st.lists(st.integers(0, 5), min_size=2, max_size=8),
    st.lists(st.booleans(), min_size=2, max_size=8),
    st.lists(st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 3) + 0.0005), min_size=2, max_size=8),
    st.lists(st.text(st.characters(codec="ascii", categories=["Lu", "Ll"]), min_size=1), min_size=2, max_size=8),
)


@settings(max_examples=25, deadline=None)
@given(labels=values)
def test_any_labels_are_read_alike_from_every_kind_of_file(
    tmp_path_factory: pytest.TempPathFactory, labels: list[Any]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    task = "regression" if isinstance(labels[0], float) else "classification"
    read = [
        probe_data(str(write(folder / f"rows.{kind}", labelled(labels))), tiny_tokenizer(), task=task).batches[0][
            "labels"
        ]
        for kind in KINDS
    ]
    assert read[0].tolist() == read[1].tolist() == read[2].tolist()
    if task == "regression":
        assert read[0].tolist() == pytest.approx(labels, rel=1e-5)
    elif isinstance(labels[0], str) and not {label.lower() for label in labels} & {"true", "false"}:
        own = datasets.Dataset.from_dict({"label": labels}).class_encode_column("label")
        assert read[0].tolist() == own["label"][:]
    elif not isinstance(labels[0], str):
        assert read[0].tolist() == [int(label) for label in labels]


def test_class_names_get_their_numbers_from_the_whole_file(tmp_path: Path) -> None:
    names = ["mid"] + ["zero", "high"] * 20
    source = write(tmp_path / "rows.csv", labelled(names))
    (batch,) = probe_data(str(source), tiny_tokenizer(), task="classification", examples=4, seed=1).batches
    drawn = sample_records(str(source), count=4, seed=1)
    assert batch["labels"].tolist() == [{"high": 0, "mid": 1, "zero": 2}[row["label"]] for row in drawn]


def test_the_mapping_of_class_names_is_shown_and_is_the_models_own_where_it_has_one(run: Run, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.csv", labelled(["neg", "pos"] * 3))
    assert "Classes of `label`: neg=0, pos=1." in run("probe", classifier(tmp_path), "--dataset", rows).words
    own = classifier(tmp_path / "own", id2label={0: "pos", 1: "neg"}, label2id={"pos": 0, "neg": 1})
    assert "Classes of `label`: pos=0, neg=1." in run("probe", own, "--dataset", rows).words
    wrong = run("probe", own, "--dataset", write(tmp_path / "wrong.csv", labelled(["neg", "neutral"] * 3)))
    assert "wrong.csv, line 3: the label 'neutral' in `label` is none of the classes `pos`, `neg`" in wrong.words


@pytest.mark.parametrize("column", ["label", "labels"])
def test_the_column_may_be_called_label_or_labels(run: Run, tmp_path: Path, column: str) -> None:
    rows = write(tmp_path / "rows.jsonl", labelled([0, 1] * 3, column))
    assert run("probe", classifier(tmp_path), "--dataset", rows).code == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", 'text,label\na,0\n"b\nb",1\nc,\n', r"a\.csv, line 5: the label in `label` is empty \(''\)"),
        ("b.jsonl", '{"text": "a", "label": 0}\n\n{"text": "b", "label": null}', r"line 3: .*empty \(None\)"),
        ("c.jsonl", '{"text": "a", "label": 0}\n{"text": "b", "label": 2}', r"line 2: the label 2 .* has 2 classes"),
        ("d.csv", "text,label\na,0\nb,-1\n", r"line 3: the label -1 .* out of range"),
        ("e.csv", "text,label\na,0\nb,0.5\n", r"line 3: the label '0.5' .* not a class number.*--task regression"),
        ("f.json", '[{"text": "a", "label": {"x": 1}}]', r"item 0: the label in `label` is \{'x': 1\}"),
        ("g.csv", "text,label\na,x\nb,y\nc,z\n", r"holds 3 class names \(`x`, `y`, `z`\).*has 2 classes"),
        ("h.csv", "text,target\na,0\n", r"columns `text`, `target`.*--column label=target"),
    ],
)
def test_a_label_that_cannot_be_read_is_named(run: Run, tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    ran = run("probe", classifier(tmp_path), "--dataset", tmp_path / name)
    assert ran.code == 1
    with pytest.raises(DataError, match=message):
        raise DataError(ran.words)


def test_a_row_of_parquet_is_named(run: Run, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.parquet", labelled([0, 1, None]))
    assert (
        "rows.parquet, row 2: the label in `label` is empty"
        in run("probe", classifier(tmp_path), "--dataset", rows).words
    )


def test_long_fields_are_read_as_datasets_reads_them(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.csv", [*labelled([0, 1]), {"text": "x" * 140_000, "label": 1}])
    assert [value for _, value in column_values(str(source), "label")] == ["0", "1", "1"]
    assert len(sample_records(str(source), count=9, seed=0)[2]["text"]) == 140_000


def test_a_saved_classifier_of_three_takes_lists_as_several_classes(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "model", tiny_model("bert"))
    for kind in ("jsonl", "csv"):
        rows = [{"text": f"text {i}", "labels": [i % 2, 1, 0]} for i in range(6)]
        rows = [{**row, "labels": json.dumps(row["labels"])} for row in rows] if kind == "csv" else rows
        ran = run("probe", tmp_path / "model", "--dataset", write(tmp_path / f"rows.{kind}", rows), "--json")
        assert ran.code == 0, ran.err
