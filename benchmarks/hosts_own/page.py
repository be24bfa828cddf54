"""Draws docs/hosts-own-tests.md from the kept result: what was run, what passes, and why the rest does not."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "hosts-own-tests.md"
RESULT = ROOT / "benchmarks" / "results" / "hosts_own.json"
AS_IT_IS = "as it is"
NOT_MADE = "not made offline: "
NO_ADAPTER = re.compile(r"has no attribute `?(lora_|base_layer)")
PASSES, REFUSED, BY_DESIGN, FAILS, LEFT_OUT = "passes", "refused", "by design", "fails", "left out"
FAILS_ALIKE = "fails as it is too"
OUTCOMES = {"passed": PASSES, "refused": REFUSED, "failed": FAILS, "skipped": LEFT_OUT}

HEAD = """# Hosts' own tests

The hosts' own tests of training ({tests_of}), with layercard's placement switched on, on CPU and offline.
Installed were TRL {trl}, PEFT {peft}, transformers {transformers} and torch {torch}. `benchmarks/hosts_own/run.py --write`
writes this page.

Hub models were made from their configuration classes (two layers, five for OPT, and a tokenizer of bytes), rows were written
anew; tests that name others were left out, and those marked slow. TRL's compare every trainable parameter before and after
training, and the base model's with what they were; PEFT's train by `transformers.Trainer`, save, and compare outputs and
generated tokens with those of the adapter read again. The tests are of other versions than the installed ones, so some fail as
they are. Of PEFT's tests of trainers on one CPU only those of torch.compile train more than prompts; they ran with their own
switch that compiles nothing.
"""
WAYS = """## With placement

Each test whose trainer holds a `PeftModel` was run again, placed on one layer, without timing and guard: `last` and `probed`
(strategy `high`, which scores by a probe) right after the trainer was built, so that the test looks at the adapters that are
left; `before train()`, on the last layer, after the test may have noted every adapter. A test that then asks for the adapter of
a layer left out cannot pass: that is **by design**. **Refused** is what layercard says it cannot place, before any training.
"""
FAILURES = """## Fails as it is, without layercard

Two count the tokens of the hub's rows, which ours are not. Those with quantization compare biases that bitsandbytes casts in the
first forward pass, of which TRL's test excuses some. The others expect what another version does.
"""


def kept() -> dict[str, Any]:
    """Return the kept document."""
    document: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    return document


def verdict(cell: dict[str, Any]) -> str:
    """Return one word for an outcome."""
    if cell["outcome"] == "failed" and cell.get("placed") and NO_ADAPTER.search(cell["message"]):
        return BY_DESIGN
    return OUTCOMES[cell["outcome"]]


def judged(test: dict[str, Any], way: str) -> str:
    """Return one word for a test placed in a way, beside how it does as it is."""
    word = verdict(test[way])
    return FAILS_ALIKE if word in (FAILS, BY_DESIGN) and verdict(test[AS_IT_IS]) == FAILS else word


def rendered(document: dict[str, Any] | None = None) -> str:
    """Return the page that a document, or the kept one, makes."""
    document = kept() if document is None else document
    results = document["results"]
    tests, ways = results["tests"], list(results["ways"])
    held = [test for test in tests if test["held"]]
    parts = [
        HEAD.format(
            tests_of=", ".join(f"{host} {version}" for host, version in results["tests_of"].items()),
            **{name: str(version).partition("+")[0] for name, version in document["machine"]["versions"].items()},
        ),
        _counts(tests),
        WAYS,
        _ways(held, ways),
        _tests(held, ways),
        _list(FAILURES, _failures(tests)),
        _list("## Left out\n", _left_out(tests)),
    ]
    return "\n".join(part for part in parts if part)


def _table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    columns = list(columns)
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def _counts(tests: list[dict[str, Any]]) -> str:
    files = list(dict.fromkeys(_file(test) for test in tests))
    words = (PASSES, FAILS, LEFT_OUT)
    rows = []
    for file in files:
        own = [test for test in tests if _file(test) == file]
        found = Counter(verdict(test[AS_IT_IS]) for test in own)
        rows.append([f"`{file}`", *(found[word] for word in words), sum(test["held"] for test in own)])
    return _table(["as it is", *words, "hold a PeftModel"], rows)


def _ways(held: list[dict[str, Any]], ways: list[str]) -> str:
    words = (PASSES, REFUSED, BY_DESIGN, FAILS, FAILS_ALIKE)
    rows = []
    for way in ways:
        found = Counter(judged(test, way) for test in held)
        rows.append([f"`{way}`", *(found[word] for word in words)])
    return _table(["placed", *words], rows)


def _tests(held: list[dict[str, Any]], ways: list[str]) -> str:
    rows: list[list[str]] = []
    notes: list[str] = []
    for test in held:
        cells = [verdict(test[AS_IT_IS])]
        for way in ways:
            word = judged(test, way)
            if word in (REFUSED, FAILS):
                note = _reason(test[way]["message"])
                if note not in notes:
                    notes.append(note)
                word = f"{word} ({notes.index(note) + 1})"
            elif word == PASSES and not test[way]["placed"]:
                word = "passes, trains nothing"
            cells.append(word)
        rows.append([_file(test), f"`{_name(test)}`", *cells])
    below = "\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1))
    return f"{_table(['file', 'test', AS_IT_IS, *(f'`{way}`' for way in ways)], rows)}\n{below}\n"


def _reason(message: str) -> str:
    """Return a refusal without its kind and what to do about it, or a failure as it is."""
    words = re.sub(r"^\w+Error: ", "", message) if message.startswith(("ModelError", "HostError")) else message
    return re.sub(r" \((?:\w+Config)\)", "", words).split(" Use a `")[0].split(" Add such")[0]


def _failures(tests: list[dict[str, Any]]) -> list[str]:
    found = [test for test in tests if verdict(test[AS_IT_IS]) == FAILS]
    return [f"`{_name(test)}`: {_short(test[AS_IT_IS]['message'])}" for test in found]


def _left_out(tests: list[dict[str, Any]]) -> list[str]:
    found: Counter[str] = Counter()
    for test in tests:
        cell = test[AS_IT_IS]
        if verdict(cell) == LEFT_OUT:
            found[cell["message"].removeprefix("Skipped: ").replace("trl-internal-testing/", "")] += 1
    reasons: dict[str, int] = Counter()
    names: Counter[str] = Counter()
    for message, count in found.items():
        if message.startswith(NOT_MADE):
            names.update(message.removeprefix(NOT_MADE).split(", ") * count)
            reasons[NOT_MADE] += count
        else:
            reasons[message] += count
    lines = [f"{count}: {reason}" for reason, count in reasons.items() if reason != NOT_MADE]
    made = ", ".join(f"`{name}` ({count})" for name, count in sorted(names.items()))
    return [f"{reasons[NOT_MADE]}: a model or data set that was not made offline: {made}", *lines] if made else lines


def _list(head: str, lines: list[str]) -> str:
    return f"{head}\n" + "".join(f"- {line}\n" for line in lines) if lines else ""


def _short(message: str) -> str:
    return re.sub(r"0x[0-9a-f]+", "0x…", message)[:160].replace("<", "‹").replace("|", "or")


def _file(test: dict[str, Any]) -> str:
    return str(test["id"]).partition("::")[0].replace("_tests/", " ")


def _name(test: dict[str, Any]) -> str:
    return str(test["id"]).split("::")[-1].replace("trl-internal-testing/", "")
