"""Turns the data sets of one folder into JSON lines that layercard and TRL read as they are.

    python benchmarks/prepare_data.py --data DATA --out OUT [--names e2e gsm8k]

`DATA/<name>/` holds a data set as it is published, one JSON object a line (gzipped where the name says so). Each becomes
`OUT/<name>/train.jsonl` and `OUT/<name>/heldout.jsonl`, shuffled once with a fixed seed, so that the first rows of either
are a sample. Training rows hold `prompt` and `completion` (classification: `text` and `label`) and nothing else. A
completion begins with the blank that separates it from its prompt; hosts append the end of sequence.

| data set | prompt | completion | held-out rows also hold |
|---|---|---|---|
| e2e | `Restaurant: MR⏎Description:` | a reference; one training row each | `references`, all of them |
| gsm8k | `Question: …⏎Answer:` | rationale without `<<…>>`, then `#### N` | `answer`, the number N |
| arc_easy, mathqa | `Question: …⏎Choices:⏎- …⏎Answer:` | the text of the right choice | `choices`, `label` |
| hellaswag | the context | the right ending | `choices`, `label` |
| glue_sst2, glue_cola | (`text` is the sentence) | (`label`) | |

Choices carry no letters, so that accuracy by likelihood asks for the answer itself: `choices` are whole completions and
`label` is the index of the right one. Held-out is each set's published test or validation split; hellaswag has its
published validation split on both sides, mathqa trains on its published validation split. Not called `datasets.py`: with
this folder on the path it would hide the library of that name. What the sets may be used for stands in their SOURCE.md.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]

CALCULATION = re.compile(r"<<[^<>]*>>")
OPTION = re.compile(r"(?:^|,)\s*([a-e]) \) ")
SEED = 0


@dataclass(frozen=True)
class Source:
    """Where a set's splits stand below its folder, and how a published row becomes training rows and a held-out row."""

    train: str
    heldout: str
    learn: Callable[[Row], list[Row]]
    judge: Callable[[Row], Row]


def e2e_train(row: Row) -> list[Row]:
    """Return one row a reference."""
    return [_pair(_restaurant(row), reference) for reference in row["refs"]]


def e2e_heldout(row: Row) -> Row:
    """Return the meaning representation with its first reference to learn and all of them to compare with."""
    return {**_pair(_restaurant(row), row["refs"][0]), "references": row["refs"]}


def gsm8k_train(row: Row) -> list[Row]:
    """Return the question with its rationale."""
    return [_pair(f"Question: {row['question']}\nAnswer:", CALCULATION.sub("", row["answer"]))]


def gsm8k_heldout(row: Row) -> Row:
    """Return the same with the final number beside it, without thousands separators."""
    return {**gsm8k_train(row)[0], "answer": row["answer"].rsplit("####", 1)[1].strip().replace(",", "")}


def listed(question: str, choices: list[str], label: int) -> Row:
    """Return a multiple-choice row that lists its choices."""
    lines = "".join(f"- {choice}\n" for choice in choices)
    return _choice(f"Question: {question}\nChoices:\n{lines}Answer:", choices, label)


def arc_heldout(row: Row) -> Row:
    """Return ARC's question with its choices listed."""
    return listed(row["question"], row["choices"], row["label"])


def mathqa_heldout(row: Row) -> Row:
    """Return MathQA's problem with its choices listed."""
    return listed(row["problem"], options(row["options"]), "abcde".index(row["correct"]))


def options(text: str) -> list[str]:
    """Return the choices of MathQA's `a ) 38 , b ) 27.675 , c ) …`, which some rows write as a Python list."""
    parts = OPTION.split(",".join(ast.literal_eval(text)) if text.startswith("[") else text)
    letters, choices = parts[1::2], [part.strip() for part in parts[2::2]]
    if letters != list("abcde"):
        raise ValueError(f"MathQA's options {text!r} were read as {letters}; they should be a to e.")
    return choices


def hellaswag_heldout(row: Row) -> Row:
    """Return the context with the four endings, unlisted."""
    return _choice(row["ctx"], row["endings"], row["label"])


def labelled(row: Row) -> Row:
    """Return a sentence and its class."""
    return {"text": row["sentence"].strip(), "label": row["label"]}


def _restaurant(row: Row) -> str:
    return f"Restaurant: {row['mr']}\nDescription:"


def _pair(prompt: str, completion: str) -> Row:
    return {"prompt": prompt, "completion": f" {completion.strip()}"}


def _choice(prompt: str, choices: list[str], label: int) -> Row:
    completions = [f" {choice.strip()}" for choice in choices]
    return {"prompt": prompt, "completion": completions[label], "choices": completions, "label": label}


def _only_pairs(judge: Callable[[Row], Row]) -> Callable[[Row], list[Row]]:
    def learn(row: Row) -> list[Row]:
        judged = judge(row)
        return [{"prompt": judged["prompt"], "completion": judged["completion"]}]

    return learn


def _classes(train: str) -> Source:
    return Source(train, "validation.jsonl", lambda row: [labelled(row)], labelled)


SOURCES = {
    "e2e": Source("train.jsonl.gz", "test.jsonl", e2e_train, e2e_heldout),
    "gsm8k": Source("train.jsonl", "test.jsonl", gsm8k_train, gsm8k_heldout),
    "mathqa": Source("train_from_dev.jsonl", "test.jsonl", _only_pairs(mathqa_heldout), mathqa_heldout),
    "hellaswag": Source(
        "train_from_val.jsonl.gz", "test_from_val.jsonl", _only_pairs(hellaswag_heldout), hellaswag_heldout
    ),
    "arc_easy": Source("train.jsonl", "test.jsonl", _only_pairs(arc_heldout), arc_heldout),
    "glue_sst2": _classes("train.jsonl.gz"),
    "glue_cola": _classes("train.jsonl"),
}


def prepare(name: str, data_dir: Path, out_dir: Path) -> tuple[Path, Path]:
    """Write the set `name` of `data_dir` below `out_dir` and return the paths of its training and held-out rows.

    The same input gives the same bytes. Raises `KeyError` for an unknown name, `OSError` where a file is missing.
    """
    source, folder = SOURCES[name], out_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    learnt = [out for row in _rows(data_dir / name / source.train) for out in source.learn(row)]
    judged = [source.judge(row) for row in _rows(data_dir / name / source.heldout)]
    return _written(folder / "train.jsonl", learnt), _written(folder / "heldout.jsonl", judged)


def _rows(path: Path) -> Iterator[Row]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _written(path: Path, rows: list[Row]) -> Path:
    random.Random(SEED).shuffle(rows)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def main() -> None:
    """Prepare the sets that were named, all of them by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the published sets")
    parser.add_argument("--out", type=Path, required=True, help="folder for the prepared ones")
    parser.add_argument("--names", nargs="+", choices=sorted(SOURCES), default=sorted(SOURCES))
    args = parser.parse_args()
    for name in args.names:
        for path in prepare(name, args.data, args.out):
            sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
