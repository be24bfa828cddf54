"""What the first commands of a new user take, on the processor at hand and on one held to AVX2.

    python benchmarks/first_run/run.py --model FOLDER --dataset train.jsonl [--full-demo] [--quick] [--write]

Each command is a process of its own on two threads: `layercard plan` without data, `layercard probe` of 32 examples, and
`layercard demo --quick` (with `--full-demo` also the whole one). AVX2 is what `ATEN_CPU_CAPABILITY` and
`ONEDNN_MAX_CPU_ISA` leave of a newer processor: its float32 is as fast as that of a real one, its bfloat16 far slower.
Seconds are of one machine and no ratio: they answer whether a first run ends while somebody waits. CPU seconds over two
cores bound the wall time of a quiet machine from below.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import torch
from common import arguments, report

from tiny import tiny_model, tiny_tokenizer

THREADS = 2
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
KINDS = {"as it is": {}, "held to AVX2": AVX2}
SLOW = re.compile(r"This CPU \([^)]*\) takes [\d.]+ times as long in \w+ as in float32")


def commands(model: str, dataset: str, folder: Path, *, quick: bool, full_demo: bool) -> dict[str, list[str]]:
    """Return the commands by what they are called."""
    examples = ["--probe-examples", "4"] if quick else []
    found = {"plan": ["plan", model], "probe": ["probe", model, "--dataset", dataset, *examples]}
    if not quick:
        found["demo --quick"] = ["demo", "--quick", "--output-dir", str(folder / "quick")]
    if full_demo:
        found["demo"] = ["demo", "--output-dir", str(folder / "full")]
    return found


def tiny(folder: Path) -> tuple[str, str]:
    """Return a tiny model and a few examples, for `--quick`."""
    tiny_model("llama", dtype=torch.bfloat16).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    rows = [json.dumps({"prompt": f"question {i} ", "completion": f"answer {i}"}) for i in range(8)]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    return str(folder / "model"), str(folder / "rows.jsonl")


def timed(command: list[str], limits: dict[str, str]) -> dict[str, Any]:
    """Run one command; return its wall and CPU seconds and what it said of the processor."""
    environment = {**os.environ, **limits, "OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    program = [sys.executable, "-m", "layercard.cli.main", *command]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    said = SLOW.search(" ".join((done.stdout + done.stderr).split()))
    return {"wall_seconds": round(wall, 1), "cpu_seconds": round(spent, 1), "said": said and said.group()}


def main() -> None:
    """Run every command on both kinds."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--model", help="a converted SmolLM2-135M (benchmarks/models.py)")
    parser.add_argument("--dataset", help="examples for the probe (benchmarks/prepare_data.py)")
    parser.add_argument("--full-demo", action="store_true", help="run the whole demo too")
    args = parser.parse_args()
    if not args.quick and not (args.model and args.dataset):
        parser.error("give --model and --dataset, or --quick")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model, dataset = (args.model, args.dataset) if args.model else tiny(Path(folder))
        for kind, limits in KINDS.items():
            made = commands(model, dataset, Path(folder), quick=args.quick, full_demo=args.full_demo)
            for name, command in made.items():
                rows.append(
                    {"processor": kind, "command": name, "load": round(os.getloadavg()[0], 1)} | timed(command, limits)
                )
                print(rows[-1], file=sys.stderr)
    report("first_run", args, {"threads_of_commands": THREADS, "rows": rows})


if __name__ == "__main__":
    main()
