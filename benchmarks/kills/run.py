"""Kills layercard at random moments and looks at what is left: SIGKILL, at a moment drawn over the whole length of a stage.

    python benchmarks/kills/run.py [--rounds 50] [--seed 0] [--stage probe] [--quick] [--write]

Five stages: the probe, the building of a Layer Card, the filling of a prefix cache on disk, training with checkpoints, and the
writing of reports. A stage runs once undisturbed, for its length, its files and its result. Then each round kills one run
of it, and runs it to its end. It fails where

- a .json, .html or .safetensors that the kill left cannot be read, but for those that transformers and PEFT write in place (a
  half checkpoint, told apart by its missing trainer_state.json, and the final adapter), which are counted;
- the run after it does not end, or ends in another result than the undisturbed one;
- other files are there than after the undisturbed run, so that whatever is left over shows.

Runs are forks of one process that has imported everything, so that a second of imports takes no kills.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from layercard.files import TEMPORARY
from layercard.pipeline.before.whole import is_whole
from layercard.prefix.files import TEMPORARY as CACHE_TEMPORARY
from layercard.progress import Progress

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "probing"))
from common import RESULTS, arguments, keep, report
from stages import STAGES, Stage, material, same

LONGEST = 300.0
"""Seconds after which a run is taken for hung."""
TEMPORARIES = (TEMPORARY, CACHE_TEMPORARY)
HOSTS_OWN = "adapter_model.safetensors"
FORK = multiprocessing.get_context("fork")


def child(stage: Stage, shared: str, folder: str, log: str) -> None:
    """Do the stage, with everything that is printed in a file."""
    with Path(log).open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    stage.work(Path(shared), Path(folder))


def run(stage: Stage, shared: Path, folder: Path, kill_after: float | None = None) -> tuple[int, float]:
    """Run the stage in a process of its own, killed after so many seconds; return its exit code and its seconds."""
    folder.mkdir(exist_ok=True)
    process = FORK.Process(target=child, args=(stage, str(shared), str(folder), str(shared / f"{stage.name}.log")))
    began = time.perf_counter()
    process.start()
    process.join(LONGEST if kill_after is None else kill_after)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode, time.perf_counter() - began


def unreadable(folder: Path) -> Iterator[Path]:
    """Yield every .json, .html and .safetensors in the folder that is not whole."""
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".html", ".safetensors")):
        try:
            _read(path)
        except (OSError, ValueError, SafetensorError):
            yield path


def _read(path: Path) -> None:
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  a safetensors file is no mapping
                file.get_tensor(name)
        return
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        json.loads(text)
        return
    HTMLParser().feed(text)
    if not (text.casefold().startswith("<!doctype html") and text.endswith("</html>\n")):
        raise ValueError(f"{path} is no whole page")


def hosts_own(path: Path, folder: Path) -> bool:
    """Whether transformers or PEFT writes the file in place: in a checkpoint that was not finished, or the final adapter."""
    inside = path.relative_to(folder).parts[0]
    half = inside.startswith("checkpoint-") and not is_whole(folder / inside)
    return half or path in (folder / HOSTS_OWN, folder / "adapter_config.json")


def names(folder: Path) -> list[str]:
    """Return the names of all files below the folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def emptied(folder: Path, known: list[str]) -> None:
    """Remove what an undisturbed run leaves; whatever else is there stays, and grows if it does."""
    for name in known:
        (folder / name).unlink(missing_ok=True)
    for inner in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        if not any(inner.iterdir()):
            inner.rmdir()


def kill_rounds(stage: Stage, shared: Path, rounds: int, draw: random.Random) -> Iterator[dict[str, Any]]:
    """Run the stage's rounds and yield after each what came of all so far."""
    alone, folder = shared / f"{stage.name}-alone", shared / stage.name
    code, _ = run(stage, shared, alone)
    if code != 0:
        raise SystemExit(f"{stage.name} fails undisturbed:\n{(shared / f'{stage.name}.log').read_text()[-3000:]}")
    known, expected = names(alone), stage.result(alone)
    emptied(alone, known)
    _, seconds = run(stage, shared, alone)  # the first one warmed files up
    seen: Counter[str] = Counter()
    failures: list[str] = []
    for number in range(rounds):
        moment = draw.uniform(0, seconds)
        code, _ = run(stage, shared, folder, moment)
        seen["killed"] += code == -signal.SIGKILL
        found = f"round {number}, killed after {moment:.3f} of {seconds:.3f} s"
        if code not in (0, -signal.SIGKILL):
            failures.append(f"{found}: it ended with {code} by itself")
        broken = list(unreadable(folder))
        own = [path for path in broken if hosts_own(path, folder)]
        seen["left half by the host"] += bool(own)
        seen["left temporary files"] += any(name.endswith(TEMPORARIES) for name in names(folder))
        failures += [f"{found}: {path.name} cannot be read" for path in broken if path not in own]
        failures += [f"{found}: {problem}" for problem in after(stage, shared, folder, known, expected)]
        emptied(folder, known)
        counted = {name: seen[name] for name in ("killed", "left half by the host", "left temporary files")}
        yield {"rounds": number + 1, "seconds": round(seconds, 2), **counted, "failures": list(failures)}


def after(stage: Stage, shared: Path, folder: Path, known: list[str], expected: Any) -> Iterator[str]:
    """Run the stage to its end and yield what is not as after the undisturbed run."""
    code, _ = run(stage, shared, folder)
    if code != 0:
        log = (shared / f"{stage.name}.log").read_text().rstrip()[-400:]
        yield f"the next run ended with {code}: {log}"
        return
    yield from (f"{path.name} cannot be read after the next run" for path in unreadable(folder))
    if names(folder) != known:
        yield f"other files than after an undisturbed run: {sorted(set(names(folder)) ^ set(known))[:4]}"
    if not same(stage.result(folder), expected):
        yield "another result than the undisturbed run's"


def main() -> None:
    """Kill every stage in turn, or the one that was named."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", choices=sorted(STAGES), action="append")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rounds = 2 if args.quick else args.rounds
    wanted = [stage for name, stage in STAGES.items() if args.stage is None or name in args.stage]
    with tempfile.TemporaryDirectory() as folder, Progress("rounds", total=rounds * len(wanted)) as progress:
        shared = Path(folder)
        material(shared)
        results: dict[str, Any] = {}
        for stage in wanted:
            for found in kill_rounds(stage, shared, rounds, random.Random(f"{args.seed} {stage.name}")):
                results[stage.name] = found
                progress.advance()
                if args.write:  # kept round by round: a script that is killed itself has not run for nothing
                    keep("kills", args, {"seed": args.seed, "stages": kept_before(args) | results})
    report("kills", args, {"seed": args.seed, "stages": (kept_before(args) if args.write else {}) | results})
    sys.exit(any(found["failures"] for found in results.values()))


def kept_before(args: argparse.Namespace) -> dict[str, Any]:
    """Return what earlier calls kept of other stages, killed from the same seed."""
    path = RESULTS / "kills.json"
    if not path.exists():
        return {}
    document = json.loads(path.read_text(encoding="utf-8"))["results"]
    stages: dict[str, Any] = document["stages"] if document["seed"] == args.seed else {}
    return stages


if __name__ == "__main__":
    main()
