"""A pytest plugin: places every trainer that holds a PeftModel, and writes down what came of each test.

`HOSTS_OWN_MODE` says when: `as it is`, `built` (at the end of the trainer's `__init__`), `train` (before its first
`train()`). `HOSTS_OWN_SETTINGS` are the arguments of `layercard.place` and `HOSTS_OWN_RECORD` is the file of results, both JSON.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import Trainer
from trl import DPOTrainer, SFTTrainer

import layercard
from layercard.errors import LayercardError

AS_IT_IS, BUILT, TRAIN = "as it is", "built", "train"
MODE = os.environ["HOSTS_OWN_MODE"]
SETTINGS: dict[str, Any] = json.loads(os.environ["HOSTS_OWN_SETTINGS"])
RECORD = Path(os.environ["HOSTS_OWN_RECORD"])
HUB_NAME = re.compile(r"[A-Za-z][\w-]*/[A-Za-z][\w.-]*")
LONGEST = 400


class Seen:
    """How many trainers of the running test hold a PeftModel, and how many of them were placed."""

    trainers = 0
    placed = 0


seen = Seen()


def _after(kind: type, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapped(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(trainer, *args, **kwargs)
        if type(trainer) is kind and isinstance(trainer.model, PeftModel):
            seen.trainers += 1
            if MODE == BUILT:
                _place(trainer)
        return result

    return wrapped


def _before(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapped(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        if MODE == TRAIN and isinstance(trainer.model, PeftModel) and not hasattr(trainer, "_placed_here"):
            _place(trainer)
            trainer._placed_here = True
        return method(trainer, *args, **kwargs)

    return wrapped


def _place(trainer: Any) -> None:
    layercard.place(trainer, **SETTINGS)
    seen.placed += 1


def pytest_configure(config: pytest.Config) -> None:
    """Wrap the trainers, once for the whole run, and stand in for what the tests import and the installed TRL has not."""
    files = {Path(argument.partition("::")[0]) for argument in config.args}
    helpers = {helper for file in files for helper in file.parent.glob("testing_utils.py")}
    for path in files | helpers:
        for module, name in gone(path):
            setattr(module, name, _absent if name.endswith("_available") else functools.partial(_skip, name))
    for trainer in (Trainer, SFTTrainer, DPOTrainer):
        trainer.__init__ = _after(trainer, trainer.__init__)
        trainer.train = _before(trainer.train)


def gone(path: Path) -> Iterator[tuple[Any, str]]:
    """Yield the module and the name of every import from TRL in a test file that the installed TRL has not."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "trl":
            module = importlib.import_module(str(node.module))
            yield from ((module, alias.name) for alias in node.names if not hasattr(module, alias.name))


def _skip(name: str, *args: Any, **kwargs: Any) -> None:
    pytest.skip(f"the installed TRL has no {name}")


def _absent() -> bool:
    return False


def missing(item: pytest.Function) -> list[str]:
    """Return what the test names on the hub and what was not made."""
    function = inspect.unwrap(item.function)
    call = getattr(item, "callspec", None)
    words = [*function.__code__.co_consts, *(call.params.values() if call else ())]
    named = [word for word in words if isinstance(word, str) and HUB_NAME.fullmatch(word)]
    return sorted({name for name in named if not Path(name).exists()})


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Leave out what needs the hub, by name; PEFT's tests of torch.compile train without compiling."""
    for item in items:
        if hasattr(item.cls, "fake_compile"):
            item.cls.fake_compile = True
        if found := missing(item):
            item.add_marker(pytest.mark.skip(reason=f"not made offline: {', '.join(found)}"))


@pytest.fixture
def lazy_shared_datadir(request: pytest.FixtureRequest) -> Path:
    """Return the folder of data beside the tests, as pytest-datadir does."""
    return request.path.parent / "data"


def pytest_runtest_logstart() -> None:
    """Begin a test with nothing seen."""
    seen.trainers = seen.placed = 0


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Write down the outcome of a test, with its error's words."""
    error = None if call.excinfo is None else call.excinfo.value
    report: Any = yield
    if report.when == "call" or report.outcome != "passed":
        outcome = "refused" if isinstance(error, LayercardError) else report.outcome
        said = report.longrepr[2] if isinstance(report.longrepr, tuple) else "" if error is None else described(error)
        found = {"id": item.nodeid, "outcome": outcome, "message": said, "held": seen.trainers, "placed": seen.placed}
        with RECORD.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
    return report


def described(error: BaseException) -> str:
    """Return the error's kind and its words, of others than layercard's the first line, without folders of this machine."""
    lines = str(error).strip().splitlines() or [""]
    words = " ".join(str(error).split()) if isinstance(error, LayercardError) else lines[0]
    words = words.replace(f"{Path.cwd()}/", "")
    return f"{type(error).__name__}: {words}"[:LONGEST]
