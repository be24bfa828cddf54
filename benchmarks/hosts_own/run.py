"""Runs TRL's own tests of its trainers with layercard's placement switched on, and writes what passes into the docs.

    python benchmarks/hosts_own/run.py --trl FOLDER [--file test_sft_trainer.py] [--quick] [--write]

FOLDER is a checkout of TRL; nothing of it is kept. Its tests run from a copy, in a process a file, offline: models, tokenizers
and rows are made (`materials.py`), and tests that name others are left out. First as they are; then each test whose trainer holds a
PeftModel again, in every way of `WAYS`, by a plugin of pytest (`placing.py`). `--write` writes docs/hosts-own-tests.md too.
`--quick` runs one test of our own (`own_test.py`) and needs no TRL but the installed one.
"""

from __future__ import annotations

import json
import os
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
FILES = ("test_sft_trainer.py", "test_dpo_trainer.py")
AS_IT_IS = "as it is"
QUIET = {"guard": False, "measure": False}
LAST = {"lora_layers": "last", "num_layers": 1, **QUIET}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "last": ("built", LAST),
    "probed": ("built", {"lora_layers": "high", "num_layers": 1, **QUIET}),
    "before train()": ("train", LAST),
}
"""When placement happens, and its settings."""
QUICK_MODELS = ["tiny-Qwen2ForCausalLM-2.5"]
SECONDS_A_TEST = 300
INI = f"[pytest]\nmarkers =\n    slow\n    low_priority\n    invariant\ntimeout = {SECONDS_A_TEST}\n"
Records = list[dict[str, Any]]


def laid_out(folder: Path, trl: Path | None) -> None:
    """Copy the tests below the folder, so that they import the installed TRL, and make what they name on the hub."""
    if trl is None:
        (folder / "tests").mkdir()
        shutil.copy(HERE / "own_test.py", folder / "tests")
    else:
        (folder / "tests").mkdir()
        for path in (trl / "tests").iterdir():
            if path.suffix == ".py":
                shutil.copy(path, folder / "tests")
        shutil.copytree(trl / "tests" / "data", folder / "tests" / "data")
    (folder / "pytest.ini").write_text(INI)
    make_all(folder, QUICK_MODELS if trl is None else None)


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
    }
    command = [sys.executable, "-m", "pytest", "-p", "placing", "-p", "no:cacheprovider", "-q", "-m", "not slow", *tests]
    with (folder / f"{mode}.log").open("a") as log:
        code = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=False).returncode
    found = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    if code not in (0, 1) or not found:
        raise SystemExit(f"pytest ended with {code}:\n{(folder / f'{mode}.log').read_text()[-3000:]}")
    return found


def all_ways(folder: Path, file: str) -> Records:
    """Run a file as it is, and its tests that hold a PeftModel in every way; return one record a test."""
    alone = {found["id"]: found for found in run(folder, [f"tests/{file}"], AS_IT_IS, {})}
    rows = [{"id": name, "held": bool(found["held"]), AS_IT_IS: _cell(found)} for name, found in alone.items()]
    held = [row["id"] for row in rows if row["held"]]
    for way, (mode, settings) in WAYS.items():
        again = {found["id"]: found for found in run(folder, held, mode, settings)} if held else {}
        for row in rows:
            if row["held"]:
                row[way] = {**_cell(again[row["id"]]), "placed": again[row["id"]]["placed"]}
    return rows


def _cell(found: dict[str, Any]) -> dict[str, Any]:
    return {"outcome": found["outcome"], "message": found["message"]}


def revision(trl: Path) -> str:
    """Return which TRL the tests are of, as its VERSION file says."""
    path = trl / "VERSION"
    return path.read_text(encoding="utf-8").strip() if path.exists() else "unknown"


def main() -> None:
    """Run the files that were asked for, or the test of our own."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--trl", type=Path, help="a checkout of TRL, with its tests")
    parser.add_argument("--file", choices=FILES, action="append")
    args = parser.parse_args()
    if args.trl is None and not args.quick:
        parser.error("--trl FOLDER is needed: the tests of TRL are not in its packages")
    trl = None if args.quick else args.trl.resolve()
    files = ["own_test.py"] if args.quick else args.file or FILES
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        laid_out(folder, trl)
        results = {
            "tests_of": "layercard" if trl is None else f"TRL {revision(trl)}",
            "ways": {way: {"when": mode, **settings} for way, (mode, settings) in WAYS.items()},
            "tests": [row for file in files for row in all_ways(folder, file)],
        }
    report("hosts_own", args, results)
    if args.write:
        PAGE.write_text(rendered(), encoding="utf-8")


if __name__ == "__main__":
    main()
