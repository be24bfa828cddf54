"""Runs TRL's and PEFT's own tests of training with layercard's placement switched on, and writes what passes into the docs.

    python benchmarks/hosts_own/run.py --trl FOLDER --peft FOLDER [--quick] [--write]

Each FOLDER is a checkout; nothing of it is kept. Its tests run from a copy, in a process a file, offline: models, tokenizers
and rows are made (`materials.py`), and tests that name others are left out. First as they are; then each test whose trainer
holds a PeftModel again, in every way of `WAYS`, by a plugin of pytest (`placing.py`). `--write` writes
docs/hosts-own-tests.md too. `--quick` runs one test of our own (`own_test.py`) and needs no TRL but the installed one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import arguments, report
from materials import make_all
from page import PAGE, rendered

HERE = Path(__file__).parent
FILES = {
    "TRL": ("test_sft_trainer.py", "test_dpo_trainer.py"),
    "PEFT": ("test_torch_compile.py::TestTorchCompileCausalLM::test_causal_lm_training_trainer_compile",),
}
VERSION_FILES = {"TRL": ("VERSION", r"(\S+)"), "PEFT": ("setup.py", r'VERSION = "(.+?)"')}
AS_IT_IS = "as it is"
QUIET = {"guard": False, "measure": False}
LAST = {"lora_layers": "last", "num_layers": 1, **QUIET}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "last": ("built", LAST),
    "probed": ("built", {"lora_layers": "high", "num_layers": 1, **QUIET}),
    "before train()": ("train", LAST),
}
"""When placement happens, and its settings."""
QUICK_WAY = "last"
QUICK_MODELS = ["trl-internal-testing/tiny-Qwen2ForCausalLM-2.5"]
SECONDS_A_TEST = 300
INI = f"""[pytest]
markers =
    slow
    low_priority
    invariant
    single_gpu_tests
    bitsandbytes
timeout = {SECONDS_A_TEST}
"""
Records = list[dict[str, Any]]


def laid_out(folder: Path, checkouts: dict[str, Path]) -> None:
    """Copy the tests below the folder, so that they import the installed packages, and make what they name on the hub."""
    for host, checkout in checkouts.items():
        tests = folder / home(host)
        tests.mkdir()
        for path in (checkout / "tests").glob("*.py"):
            shutil.copy(path, tests)
        if (checkout / "tests" / "data").exists():
            shutil.copytree(checkout / "tests" / "data", tests / "data")
    if not checkouts:
        shutil.copy(HERE / "own_test.py", folder)
    (folder / "pytest.ini").write_text(INI)
    make_all(folder, None if checkouts else QUICK_MODELS)


def home(host: str) -> str:
    """Return the folder of a host's tests, which must not have the name of its package."""
    return f"{host}_tests"


def run(folder: Path, tests: list[str], mode: str, settings: dict[str, Any]) -> Records:
    """Run tests in a process of their own and return what the plugin wrote down."""
    record = folder / "record.jsonl"
    record.unlink(missing_ok=True)
    inherited = os.environ.get("PYTHONPATH", "")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), inherited])),
        "HOSTS_OWN_MODE": mode,
        "HOSTS_OWN_SETTINGS": json.dumps(settings),
        "HOSTS_OWN_RECORD": str(record),
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PEFT_DEBUG_WITH_TORCH_COMPILE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "placing", "-p", "no:cacheprovider", "-m", "not slow"]
    with (folder / f"{mode}.log").open("a") as log:
        code = subprocess.run([*command, *tests], cwd=folder, env=environment, stdout=log, stderr=log).returncode
    found = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    if code not in (0, 1) or not found:
        raise SystemExit(f"pytest ended with {code}:\n{(folder / f'{mode}.log').read_text()[-3000:]}")
    return found


def all_ways(folder: Path, file: str, ways: list[str]) -> Records:
    """Run a file as it is, and its tests that hold a PeftModel in these ways; return one record a test."""
    alone = {found["id"]: found for found in run(folder, [file], AS_IT_IS, {})}
    rows = [{"id": name, "held": bool(found["held"]), AS_IT_IS: _cell(found)} for name, found in alone.items()]
    held = [row for row in rows if row["held"]]
    for way in ways if held else ():
        again = {found["id"]: found for found in run(folder, [row["id"] for row in held], *WAYS[way])}
        for row in held:
            row[way] = {**_cell(again[row["id"]]), "placed": again[row["id"]]["placed"]}
    return rows


def _cell(found: dict[str, Any]) -> dict[str, Any]:
    return {"outcome": found["outcome"], "message": found["message"]}


def revision(host: str, checkout: Path) -> str:
    """Return which version a checkout is of."""
    name, pattern = VERSION_FILES[host]
    path = checkout / name
    found = re.search(pattern, path.read_text(encoding="utf-8")) if path.exists() else None
    return "unknown" if found is None else found[1]


def main() -> None:
    """Run the hosts' files, or the test of our own."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--trl", type=Path, help="a checkout of TRL, with its tests")
    parser.add_argument("--peft", type=Path, help="a checkout of PEFT, with its tests")
    args = parser.parse_args()
    given = {host: path.resolve() for host, path in (("TRL", args.trl), ("PEFT", args.peft)) if path is not None}
    if not given and not args.quick:
        parser.error("--trl FOLDER or --peft FOLDER is needed: the tests are not in the packages")
    if args.quick and args.write:
        parser.error("--quick tries one test of our own, which is no result to keep")
    checkouts = {} if args.quick else given
    ways = [QUICK_WAY] if args.quick else list(WAYS)
    files = [f"{home(host)}/{file}" for host in checkouts for file in FILES[host]] or ["own_test.py"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        laid_out(folder, checkouts)
        results = {
            "tests_of": {host: revision(host, checkout) for host, checkout in checkouts.items()},
            "ways": {way: {"when": WAYS[way][0], **WAYS[way][1]} for way in ways},
            "tests": [row for file in files for row in all_ways(folder, file, ways)],
        }
    report("hosts_own", args, results)
    if args.write:
        PAGE.write_text(rendered(), encoding="utf-8")


if __name__ == "__main__":
    main()
