"""What set gain and a budget cost: planning for 80 layers, the probe's sketches and their error; and whether gains order runs.

    python benchmarks/set_gain/run.py [--quick] [--write]
    python benchmarks/prepare_data.py --data DATA --out PREPARED --names e2e gsm8k arc_easy
    python benchmarks/set_gain/run.py --model MODELS/SmolLM2-135M-Instruct --data PREPARED --write

With a model and data the gains of the placements of `benchmarks/guard` are held against what those reached.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

import layercard
from layercard.cost.memory import peak_bytes
from layercard.cost.predict import predict_step_ratio
from layercard.placement.budget import front, within_budget
from layercard.placement.set_gain import forward
from layercard.placement.strategies import StrategyRequest
from layercard.probing.sketch import SKETCH_WIDTH
from layercard.scores.base import LayerScores
from layercard.scores.coupling import coupling
from layercard.scores.set_gain import SetGain

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from common import LLAMA_TARGETS, arguments, compare, llama, ratio, report, token_batches
from order import achieved_order

LAYERS, SIZED = 80, (32, 128)
SHAPES = (("12 layers, hidden 768", 12, 768), ("30 layers, hidden 576", 30, 576))


def planning(examples: int, rounds: int) -> dict[str, Any]:
    """Return the seconds of every choice among 80 layers, the median of `rounds`, by made-up gradients."""
    sets = made_up(examples)
    alone = np.array([sets.of([layer]) for layer in range(LAYERS)])
    step_ratio = partial(predict_step_ratio, LAYERS, checkpointing=True)
    found: dict[str, Any] = {"examples": examples}
    for name, scores in (("sum", LayerScores("sum", alone, alone)), ("gain", LayerScores("gain", alone, alone, sets))):
        ask = partial(StrategyRequest, LAYERS, LAYERS // 3, scores, step_ratio=step_ratio)
        found[f"budget 0.6 by {name}"] = seconds(lambda ask=ask: within_budget(ask(budget=0.6)), rounds)
        found[f"front by {name}"] = seconds(lambda ask=ask: front(ask()), rounds)
    found["forward selection of 26"] = seconds(lambda: forward(ask()), rounds)
    found["coupling of 26"] = seconds(lambda: coupling(sets, range(LAYERS - 26, LAYERS)), rounds)
    return found


def made_up(examples: int) -> SetGain:
    """Return the gains of layers whose examples have a direction of their own, one of all layers, and noise."""
    draw = np.random.default_rng(0)
    shared = draw.normal(size=(examples, 200))
    rows = [
        np.hstack([draw.normal(size=(examples, 400)) + 0.3 * draw.normal(size=(1, 400)), shared]) for _ in range(LAYERS)
    ]
    return SetGain.of_grams(np.stack([r @ r.T for r in rows]), range(LAYERS))


def seconds(run: Callable[[], object], rounds: int) -> float:
    """Return the median seconds of a run."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return round(statistics.median(taken), 3)


def probing(name: str, layers: int, hidden: int, rounds: int) -> dict[str, Any]:
    """Return what a probe for `resnorm` and `set_gain` takes over one for `resnorm` alone, on the same batches."""
    model = get_peft_model(llama(layers, hidden), LoraConfig(r=16, target_modules=LLAMA_TARGETS, task_type="CAUSAL_LM"))
    batches = token_batches(rounds + 1, 4, 64, 400)

    def probe(scores: tuple[str, ...]) -> Callable[[int], None]:
        return lambda number: void(layercard.probe(model, [batches[number]], scores=scores, show_progress=False))

    runs = {"resnorm": probe(("resnorm",)), "both": probe(("resnorm", "set_gain"))}
    timings = compare(runs, rounds=rounds)
    peaks = {key: peak_bytes(lambda run=run: run(0), model, torch.device("cpu")) for key, run in runs.items()}
    return {
        "shape": name,
        "with set_gain over resnorm alone": ratio(timings, "both", "resnorm"),
        "peak bytes": round(peaks["both"] / peaks["resnorm"], 3),
    } | sketch_error(model, batches[0])


def void(_: object) -> None:
    """Drop a value."""


def sketch_error(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return how far sketched inner products are from autograd's, as a share of the two lengths (rms over pairs and layers)."""
    factors = {name: p for name, p in model.named_parameters() if "lora_B" in name}
    scale = next(m.scaling["default"] for m in model.modules() if hasattr(m, "lora_B"))
    depth = model.config.num_hidden_layers
    rows: list[list[np.ndarray[Any, Any]]] = [[] for _ in range(depth)]
    for row in range(len(batch["input_ids"])):
        loss = model(**{name: value[row : row + 1] for name, value in batch.items()}).loss
        found = dict(zip(factors, torch.autograd.grad(loss, list(factors.values())), strict=True))
        for layer in range(depth):
            mine = [g.double().flatten() for name, g in found.items() if f".layers.{layer}." in name]
            rows[layer].append((torch.cat(mine) / scale).numpy())
    exact = np.stack([np.stack(r) @ np.stack(r).T for r in rows])
    gram = layercard.probe(model, [batch], scores=("set_gain",), show_progress=False).gradient_gram
    assert gram is not None
    lengths = np.sqrt(np.einsum("lii->li", exact))
    off = (gram - exact) / (lengths[:, :, None] * lengths[:, None])
    layers = list(range(depth))
    gains = SetGain.of_grams(gram, layers).of(layers), SetGain.of_grams(exact, layers).of(layers)
    return {
        "inner products off by (rms, of the lengths)": round(float(np.sqrt((off**2).mean())), 4),
        "bound on that": round(float(np.sqrt(2 / SKETCH_WIDTH)), 4),
        "gain of all layers, sketched over exact": round(gains[0] / gains[1], 4),
    }


def main() -> None:
    """Run every part; the order of runs where a model and data were given."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", type=Path, help="SmolLM2-135M-Instruct, as models.py keeps it")
    parser.add_argument("--data", type=Path, help="folder that prepare_data.py wrote")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shapes = (("4 layers, hidden 96", 4, 96),) if args.quick else SHAPES
    results: dict[str, Any] = {
        "planning, seconds": [planning(n, 1 if args.quick else 3) for n in (SIZED[:1] if args.quick else SIZED)],
        "probe": [probing(*shape, rounds=2 if args.quick else 12) for shape in shapes],
    }
    if args.model is not None and args.data is not None:
        results["order"] = achieved_order(args.model, args.data, examples=8 if args.quick else 32)
    report("set_gain", args, results)


if __name__ == "__main__":
    main()
