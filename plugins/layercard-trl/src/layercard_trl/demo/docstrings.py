"""The demo's data: signatures of Python's standard library, each with the summary line of its docstring.

The source files of the running Python are parsed, never imported. Nothing is downloaded and nothing is committed; one
Python version always gives the same examples in the same order.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeAlias

from layercard.errors import DataError

Example: TypeAlias = dict[str, str]
"""`prompt` holds a function's signature up to the opening quotes, `completion` the summary and the closing ones."""

LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "__pycache__"}
)
SHORTEST, LONGEST = 20, 100
LONGEST_SIGNATURE = 160


def docstring_examples(train: int, heldout: int) -> tuple[list[Example], list[Example]]:
    """Return `train` and `heldout` examples, without a prompt or a completion that occurs twice.

    Raises `DataError` where this Python's standard library holds fewer.
    """
    examples = _library()
    if len(examples) < train + heldout:
        raise DataError(
            f"The demo needs {train + heldout} documented functions and found {len(examples)} in "
            f"{sysconfig.get_path('stdlib')}. Use a Python whose standard library is installed as source files."
        )
    return examples[heldout : heldout + train], examples[:heldout]


@cache
def _library() -> list[Example]:
    """Every example, in an order that has nothing to do with where it stands."""
    examples = _deduplicated(_all_examples(Path(sysconfig.get_path("stdlib"))))
    return sorted(examples, key=lambda example: hashlib.sha256(example["prompt"].encode()).digest())


def _deduplicated(examples: Iterator[Example]) -> list[Example]:
    prompts, completions, kept = set(), set(), []
    for example in examples:
        if example["prompt"] not in prompts and example["completion"].lower() not in completions:
            kept.append(example)
        prompts.add(example["prompt"])
        completions.add(example["completion"].lower())
    return kept


def _all_examples(root: Path) -> Iterator[Example]:
    for path in sorted(root.rglob("*.py")):
        module = path.relative_to(root).with_suffix("")
        if LEFT_OUT.isdisjoint(module.parts):
            yield from _examples_of(path, ".".join(module.parts).removesuffix(".__init__"))


def _examples_of(path: Path, module: str) -> Iterator[Example]:
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # templates and samples that are not meant to be parsed
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            summary = (ast.get_docstring(node) or "").split("\n", 1)[0].strip()
            signature = f"def {node.name}({ast.unparse(node.args)}):"
            if SHORTEST <= len(summary) <= LONGEST and len(signature) <= LONGEST_SIGNATURE and summary.endswith("."):
                yield {"prompt": f'# {module}\n{signature}\n    """', "completion": f'{summary}"""'}
