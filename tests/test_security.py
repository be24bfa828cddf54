"""Models, cards, settings and reports that somebody else made are data: nothing in them runs, and nobody is asked to let it.

Hostile Layer Cards are in `cards/test_reading.py` and `cards/test_schema.py`, hostile reports in `report/test_page.py`, tags in
Axolotl's files in that plugin's tests.
"""

from __future__ import annotations

import ast
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import layercard
from card_documents import measured
from command_line import Ran, Run, questions, runner
from layercard import PlacementSettings
from layercard.anatomy.checkpoint_file import saved_names
from layercard.cards.library import user_path
from layercard.cards.schema import check_card
from layercard.errors import CardError, PlacementError, SettingsError
from tiny import tiny_model, tiny_tokenizer

ROOT = Path(layercard.__file__).parents[2]
SOURCES = [
    path
    for folder in (ROOT / "src", *ROOT.glob("plugins/*/src"))
    for path in sorted(folder.rglob("*.py"))
    if not any(part.endswith(".egg-info") for part in path.parts)
]
RUNS_WHAT_IT_READS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {"eval", "exec", "compile", "__import__"}
YAML_LOADERS = {"yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a name or attribute, empty for other expressions."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def faults(tree: ast.AST) -> Iterator[str]:
    """What in a file could run, or let others run, what was read from elsewhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            names = {f"{module}{alias.name}" for alias in node.names} - {"pickle.UnpicklingError"}
            yield from (f"import {name}" for name in names if name.split(".")[0] in RUNS_WHAT_IT_READS)
        elif isinstance(node, ast.Call):
            yield from faults_of_call(node)


def faults_of_call(call: ast.Call) -> Iterator[str]:
    name = dotted(call.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name in CALLS | YAML_LOADERS:
        yield name
    if name == "torch.load" and given.get("weights_only") != "True":
        yield f"{name} without weights_only=True"
    if name == "torch.save":
        yield "torch.save, where safetensors would do"
    if given.get("trust_remote_code", "False") != "False":
        yield f"{name}(trust_remote_code={given['trust_remote_code']})"
    if given.get("allow_pickle", "False") != "False" or given.get("shell", "False") != "False":
        yield f"{name}(allow_pickle or shell)"
    if name == "YAML" and given.get("typ", "'rt'") not in ("'rt'", "'safe'"):
        yield f"YAML(typ={given['typ']})"


def written_trust(tree: ast.AST) -> Iterator[str]:
    """`trust_remote_code` as a key or a field that is set to anything but false."""
    for node in ast.walk(tree):
        pairs: list[tuple[ast.expr | None, ast.expr]] = []
        if isinstance(node, ast.Dict):
            pairs = list(zip(node.keys, node.values, strict=True))
        elif isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
        for key, value in pairs:
            says = key.value if isinstance(key, ast.Constant) else dotted(key).rpartition(".")[2] if key else ""
            if says in ("trust_remote_code", "TRUST") and ast.unparse(value) not in ("False", "'trust_remote_code'"):
                yield f"trust_remote_code set to {ast.unparse(value)}"


def test_no_file_runs_what_it_reads_or_switches_on_code_of_others() -> None:
    assert len(SOURCES) > 200
    found = {}
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found[str(path.relative_to(ROOT))] = [*faults(tree), *written_trust(tree)]
    assert {path: what for path, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "line",
    [
        "load(name, trust_remote_code=True)",
        "load(name, trust_remote_code=asked)",
        "options = {'trust_remote_code': True}",
        "config.trust_remote_code = True",
        "import pickle",
        "torch.load(path)",
        "yaml.load(text, Loader)",
        "YAML(typ='unsafe')",
        "eval(text)",
    ],
)
def test_the_search_finds_what_it_looks_for(line: str) -> None:
    tree = ast.parse(line)
    assert [*faults(tree), *written_trust(tree)]


CODE = """
import pathlib
pathlib.Path({ran!r}).touch()
from transformers import PreTrainedConfig, PreTrainedTokenizerFast
class Config(PreTrainedConfig):
    model_type = "stranger"
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""
OWN = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model", "AutoTokenizer": ["own.Tokenizer", None]}


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model, beside which lies code that leaves a file `ran` when it is imported."""
    folder = tmp_path / "model"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "own.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text((folder / "own.py").read_text())
    return folder


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `layercard` beside a person who answers yes to everything, and whom it must not ask."""
    asked: list[object] = []
    monkeypatch.setattr("builtins.input", lambda *prompt: asked.append(prompt) or "y")
    ran = runner(capfd)

    def unasked(*arguments: object) -> Ran:
        done = ran(*arguments)
        assert asked == []
        assert "Traceback" not in done.words
        return done

    return unasked


def refused(folder: Path, said: str) -> None:
    assert said.count("Error: ") == 1, said
    assert f"{folder} comes with Python code of its own, which the command line never runs." in said
    assert not (folder.parent / "ran").exists()


def test_a_model_of_a_type_that_only_its_own_code_knows_is_refused_and_nobody_is_asked(folder: Path, run: Run) -> None:
    rewrite(folder / "config.json", model_type="stranger", architectures=["Model"], auto_map=OWN)
    ran = run("plan", folder)
    assert ran.code == 1
    refused(folder, ran.words)


def test_a_tokenizer_that_only_its_own_code_knows_is_refused_at_a_terminal_without_a_question(folder: Path) -> None:
    rewrite(folder / "tokenizer_config.json", tokenizer_class="Tokenizer", auto_map=OWN)
    command = [sys.executable, "-m", "layercard", "probe", folder, "--dataset", questions(folder.parent)]
    ours, theirs = pty.openpty()
    os.write(ours, b"y\n" * 4)
    done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, timeout=300)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 1
    assert "y/N" not in done.stdout + done.stderr
    refused(folder, " ".join(done.stderr.split()))


def test_a_model_that_transformers_knows_is_read_without_the_code_beside_it(folder: Path, run: Run) -> None:
    rewrite(folder / "config.json", auto_map=OWN)
    ran = run("probe", folder, "--dataset", questions(folder.parent))
    assert ran.code == 0, ran.words
    assert not (folder.parent / "ran").exists()


class Touches:
    """What a pickle file of a stranger would call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickled_model_that_calls_something_is_refused(folder: Path, run: Run) -> None:
    ran = folder.parent / "ran"
    (folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Touches(ran)}, folder / "pytorch_model.bin")
    done = run("probe", folder, "--dataset", questions(folder.parent))
    assert done.code == 1
    assert done.words.count("Error: ") == 1, done.words
    assert "pytorch_model.bin is a pickle file, which is not read" in done.words
    assert not ran.exists()


def test_a_pickled_checkpoint_that_calls_something_is_refused(tmp_path: Path) -> None:
    torch.save({"lora_A": Touches(tmp_path / "ran")}, tmp_path / "adapter_model.bin")
    with pytest.raises(PlacementError, match=r"adapter_model.bin holds more than tensors"):
        saved_names(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "value",
    [
        "{strategy: !!python/object/apply:os.system ['exit 3']}",
        "{strategy: !!python/name:os.system ''}",
        "{strategy: !mine high}",
    ],
)
def test_settings_with_tags_are_refused(value: str) -> None:
    with pytest.raises(SettingsError, match="begins like a mapping and is none"):
        PlacementSettings.from_user(value)


IDS = st.text(st.sampled_from("ab./\\~:%\x00- \n") | st.characters(codec="utf-8"), min_size=1, max_size=20)


@given(IDS, IDS)
def test_whatever_ids_a_card_has_it_stays_in_the_library(model: str, dataset: str) -> None:
    document = measured()
    document["model"]["id"], document["dataset"]["id"] = model, dataset
    try:
        card = check_card(document, "card.json")
    except CardError:
        return
    library = Path("/library/cards")
    path = Path(os.path.normpath(user_path(card, library)))
    assert path.is_relative_to(library)
    assert len(path.relative_to(library).parts) == 2


def test_a_chat_template_that_reaches_into_python_is_refused(folder: Path, run: Run) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages.__class__.__base__.__subclasses__() }}"
    tokenizer.save_pretrained(folder)
    data = folder.parent / "chats.jsonl"
    said_by = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "you"}]
    data.write_text((json.dumps({"messages": said_by}) + "\n") * 8)
    done = run("probe", folder, "--dataset", data)
    assert done.code == 1
    assert "unsafe" in done.words
