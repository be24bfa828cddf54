"""Long models: is the probe's memory flat in the number of batches, its time linear in layers, and planning under 15 seconds.

    python benchmarks/long/run.py [--quick] [--write]

The probe reads narrow random models of 20 to 126 layers, in turn on the same batches; its time is the process's CPU time.
`layercard plan` reads configurations of the shapes of Llama-3 70B and 405B, of which no weight exists here.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers as hf

import layercard
from layercard.cost.memory import peak_bytes

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import arguments, llama, report, token_batches

HIDDEN, ROWS, WIDTH, VOCAB = 192, 2, 32, 400
DEPTHS, QUICK_DEPTHS = (20, 40, 80, 126), (4, 8)
BATCHES, QUICK_BATCHES = (1, 4, 16), (1, 2)
SHAPES = {
    "80 layers, hidden 8192 (Llama-3 70B)": {"num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672},
    "126 layers, hidden 16384 (Llama-3.1 405B)": {
        "num_hidden_layers": 126, "hidden_size": 16384, "intermediate_size": 53248, "num_attention_heads": 128,
    },
}  # fmt: skip
QUICK_SHAPES = {"8 layers, hidden 96": {"num_hidden_layers": 8, "hidden_size": 96, "intermediate_size": 256}}
PROGRAM = "import sys; from layercard.cli.main import main; main()"


def memory(depth: int, counts: tuple[int, ...]) -> dict[str, Any]:
    """Return the probe's peak over several batches as a ratio to its peak over one."""
    model, device = llama(depth, HIDDEN, vocab=VOCAB), torch.device("cpu")
    peaks = {}
    for count in counts:
        batches = token_batches(count, ROWS, WIDTH, VOCAB)
        peaks[count] = peak_bytes(lambda b=batches: probe(model, b), model, device)
    return {
        "layers": depth,
        "peak over that of one batch": {n: round(peak / peaks[counts[0]], 4) for n, peak in peaks.items()},
    }


def probe(model: Any, batches: list[dict[str, Any]]) -> None:
    """Probe for the default score."""
    layercard.probe(model, batches, show_progress=False)


def linear(depths: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """Return by depth the CPU time a layer takes in the probe, over that of the shallowest model; models take turns."""
    models = {depth: llama(depth, HIDDEN, vocab=VOCAB) for depth in depths}
    batches = token_batches(rounds + 1, ROWS, WIDTH, VOCAB)
    taken: dict[int, list[float]] = {depth: [] for depth in depths}
    for batch in batches:
        for depth, model in models.items():
            began = time.process_time()
            probe(model, [batch, batch])
            taken[depth].append((time.process_time() - began) / depth)
    found = []
    for depth in depths:
        ratios = [one / whole for one, whole in zip(taken[depth][1:], taken[depths[0]][1:], strict=True)]
        found.append({
            "layers": depth,
            "CPU time a layer, over the shallowest model's": round(median(ratios), 3),
            "lowest": round(min(ratios), 3),
            "highest": round(max(ratios), 3),
            "rounds": rounds,
        })  # fmt: skip
    return found


def planning(shape: dict[str, int], times: int) -> dict[str, Any]:
    """Return the seconds that `layercard plan` takes as a process of its own, on a folder that holds a configuration alone."""
    heads = {"num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128_256, "head_dim": 128}
    if shape["hidden_size"] < 1024:
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 400}
    with tempfile.TemporaryDirectory() as folder:
        hf.LlamaConfig(**(heads | shape), architectures=["LlamaForCausalLM"]).save_pretrained(folder)
        walls, cpus = [], []
        for _ in range(times):
            before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, "plan", folder, "--json"],
                env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"},
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            walls.append(time.perf_counter() - began)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            json.loads(done.stdout.splitlines()[-1])
    return {"wall seconds": round(median(walls), 1), "CPU seconds": round(median(cpus), 1), "times": times}


def main() -> None:
    """Run all three."""
    args = arguments(__doc__ or "").parse_args()
    torch.set_num_threads(args.threads)
    depths, counts = (QUICK_DEPTHS, QUICK_BATCHES) if args.quick else (DEPTHS, BATCHES)
    shapes = QUICK_SHAPES if args.quick else SHAPES
    report(
        "long",
        args,
        {
            "memory": [memory(depth, counts) for depth in depths[-2:]],
            "time": linear(depths, 2 if args.quick else 9),
            "plan": {name: planning(shape, 1 if args.quick else 3) for name, shape in shapes.items()},
        },
    )


if __name__ == "__main__":
    main()
