"""Judges every selector and schedule by short real fine-tunes: held-out loss at equal steps and at equal time.

    python benchmarks/models.py smollm2 gemma --to MODELS
    python benchmarks/prepare_data.py --data DATA --out PREPARED
    python benchmarks/validity/run.py --models MODELS --data PREPARED        # hours; goes on where it stopped

Results are kept as they come, one file a configuration, in `benchmarks/results/validity/<pair>/`. `tables.py` beside this
file renders them. aletheia-lora joins where it can be imported (`pip install --no-deps aletheia-lora==0.1.2`).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from common import RESULTS, arguments, llama, machine
from validity.pairs import PAIRS, Pair, Subject, load
from validity.precision import fast_dtype
from validity.recipe import NewExamples, Recipe
from validity.results import read, summary
from validity.schedules import schedules
from validity.work import Lab, work_through

from tiny import tiny_tokenizer

QUICK_PAIR = Pair("random", "counting", 2, 64, 4)
QUICK_RECIPE = Recipe(steps=4, epoch_steps=3, every=2, rate_steps=2, warm_up=1)
QUICK_NEW = NewExamples(steps=4, epoch_steps=6, every=2, rate_steps=2, warm_up=1, apart=QUICK_RECIPE.epoch_steps)


def main() -> None:
    parser: argparse.ArgumentParser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder that prepare_data.py wrote; `--quick` does without")
    parser.add_argument("--models", type=Path, help="folder that models.py wrote; `--quick` does without")
    parser.add_argument("--results", type=Path, default=RESULTS / "validity", help="where results are kept")
    parser.add_argument("--pairs", nargs="+", choices=[p.name for p in PAIRS], default=[p.name for p in PAIRS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--arms", nargs="+", default=[], help="only these, by their names in the tables, in this order")
    parser.add_argument(
        "--checkpointed", action="store_true", help="train nothing: time steps under gradient checkpointing"
    )
    parser.add_argument(
        "--new-examples",
        action="store_true",
        help="no run sees an example twice; choices and rates are read from before",
    )
    parser.add_argument("--minutes", type=float, help="begin nothing new after so many minutes")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="of base weights; default: the faster here")
    args = parser.parse_args()
    if not args.quick and (args.data is None or args.models is None):
        parser.error("give --data and --models, the folders that prepare_data.py and models.py wrote, or --quick")
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype) if args.dtype else fast_dtype()
    facts = machine() | {"base_dtype": str(dtype), "processor_capability": torch.backends.cpu.get_cpu_capability()}
    if args.quick:
        document = _quick(dtype, facts)
    else:
        pairs = [pair for pair in PAIRS if pair.name in args.pairs]
        new = NewExamples() if args.new_examples else None
        lab = Lab(
            lambda pair: load(pair, args.models, args.data, dtype), Recipe(), args.results, str(dtype), facts, new
        )
        document = _through(lab, pairs, args.seeds, args.arms, args.minutes, checkpointed=args.checkpointed)
    document = {"benchmark": "validity", "quick": args.quick, "machine": facts, "results": document}
    sys.stdout.write(json.dumps(document) + "\n")


def _through(
    lab: Lab, pairs: list[Pair], seeds: list[int], arms: list[str], minutes: float | None, *, checkpointed: bool = False
) -> dict[str, Any]:
    end = math.inf if minutes is None else time.monotonic() + 60 * minutes
    judged = schedules(lab.recipe)
    work_through(lab, pairs, seeds, judged, only=arms, checkpointed=checkpointed, until=lambda: time.monotonic() > end)
    found = {p.name: read(lab.results, p.name, new_examples=lab.new_examples is not None) for p in pairs}
    return {name: summary(pair, seeds) for name, pair in found.items()}


def _quick(dtype: torch.dtype, facts: dict[str, Any]) -> dict[str, Any]:
    """Go through everything with a random model and made-up rows; numbers are of no worth."""
    with tempfile.TemporaryDirectory() as folder:
        base = llama(6, 48, dtype=dtype)
        prepared = Path(folder)
        made = Subject(QUICK_PAIR, base, tiny_tokenizer(), prepared)
        lab = Lab(lambda pair: made, QUICK_RECIPE, prepared / "results", str(dtype), facts)
        data = prepared / QUICK_PAIR.data
        data.mkdir()
        rows = [{"prompt": f"{n} and {n} are", "completion": f" {2 * n}"} for n in range(10, 90)]
        for file in ("train.jsonl", "heldout.jsonl"):
            (data / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
        _through(lab, [QUICK_PAIR], [0], [], None)
        _through(replace(lab, new_examples=QUICK_NEW), [QUICK_PAIR], [0], ["last"], None)
        return _through(lab, [QUICK_PAIR], [0], [], None, checkpointed=True)


if __name__ == "__main__":
    main()
