"""How near the predictions of `layercard plan` are: peak memory against measured peaks, step time over random placements.

    python benchmarks/memory_fit/run.py --part plain|trl|steps [--quick] [--write]

`plain` are steps of PEFT models, `trl` those inside real `SFTTrainer.train()`; both measure with `cost/memory.py`, on a CPU a
count of live bytes without optimizer state, and predict from the configuration alone. Errors are relative; beside those of
the whole peak stand those of what is left without weights and adapters, which are known. `steps` draws 20 placements of a
TRL run, each timed against all-layer LoRA in alternation.
"""

from __future__ import annotations

import copy
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from peft import LoraConfig, get_peft_model

from layercard.anatomy.gradient_entry import GradientEntry
from layercard.anatomy.layers import find_layers
from layercard.anatomy.narrow import narrow
from layercard.cost.memory import peak_bytes
from layercard.cost.peak import ModelBytes, Training, predict_peak
from layercard.cost.traced import RunShape, trace_bytes
from layercard.cost.untouched import clear_gradients

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from common import LLAMA_TARGETS, arguments, llama, report, token_batches
from steps import steps
from training import bare, in_trl

CPU = torch.device("cpu")
SHAPES = [(8, 192, 400), (12, 288, 4000), (6, 384, 16000)]
BATCHES = [(1, 64, False), (4, 64, True), (2, 160, False)]
"""Rows, their tokens, and whether one of them is padded."""
TRL_RUNS: list[dict[str, Any]] = [
    {"checkpointing": False},
    {"checkpointing": True},
    {"checkpointing": True, "rows": 4, "width": 128},
    {"checkpointing": False, "bf16": True},
    {"checkpointing": True, "bf16": True},
    {"checkpointing": False, "nf4": True},
    {"checkpointing": True, "nf4": True, "width": 128},
    {"checkpointing": False, "vocab": 8000, "rows": 4},
]


def placements(depth: int) -> dict[str, tuple[int, ...]]:
    """Return the layers of each way of placing that is tried."""
    third = depth // 3
    return {
        "all": tuple(range(depth)),
        "last third": tuple(range(depth - third, depth)),
        "uniform over the upper two thirds": tuple(range(third, depth, 2)),
        "layer 1 alone": (1,),
    }


def row(
    case: dict[str, Any], counted: ModelBytes, layers: Sequence[int], training: Training, peak: int
) -> dict[str, Any]:
    """Return one measurement beside its prediction."""
    predicted = predict_peak(counted, layers, training)
    known = predicted.weights + predicted.adapters
    return case | {
        "measured": peak,
        "predicted": predicted.total,
        "error": round(predicted.total / peak - 1, 4),
        "error without weights": round((predicted.total - known) / (peak - known) - 1, 4),
    }


def plain(quick: bool) -> Iterator[dict[str, Any]]:
    """Yield steps of PEFT models on full and on padded rows."""
    shapes, batches = (SHAPES[:1], BATCHES[:1]) if quick else (SHAPES, BATCHES)
    for (depth, hidden, vocab), dtype in product(shapes, (torch.float32, torch.bfloat16)):
        model = llama(depth, hidden, vocab=vocab, dtype=dtype)
        for rows, width, padded in batches:
            batch = token_batches(1, rows, width, vocab)[0]
            if padded:
                batch["attention_mask"][0, width // 2 :] = 0
            read = {name: values for name, values in batch.items() if padded or name != "attention_mask"}
            counted = trace_bytes(*bare(model), read, RunShape(dtype=dtype, tiled_head=False))
            case = {"shape": f"{depth} x {hidden}, vocabulary {vocab}", "dtype": str(dtype).removeprefix("torch.")}
            case |= {"batch": f"{rows} x {width}", "padded": padded}
            yield from _plain_rows(model, batch, counted, case)


def _plain_rows(model: Any, batch: Any, counted: ModelBytes, case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    depth = len(find_layers(model))
    for checkpointing, (name, layers) in product((False, True), placements(depth).items()):
        for moved in (True, False) if name == "layer 1 alone" else (len(layers) < depth,):
            training = Training(checkpointing, gradient_entry=moved or not checkpointing, optimizer_state=0)
            peak = _plain_peak(model, batch, layers, checkpointing=checkpointing, moved=moved)
            told = {"checkpointing": checkpointing, "layers": name, "entry moved": moved}
            yield row(case | told, counted, layers, training, peak)
            sys.stderr.write(".")


def _plain_peak(model: Any, batch: Any, layers: Sequence[int], *, checkpointing: bool, moved: bool) -> int:
    config = LoraConfig(r=16, target_modules=LLAMA_TARGETS, layers_to_transform=list(layers))
    adapted = get_peft_model(copy.deepcopy(model), config).train()
    if checkpointing:
        adapted.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        adapted.enable_input_require_grads()
    with GradientEntry(adapted, find_layers(adapted), layers[0]) if moved else nullcontext():
        return peak_bytes(lambda: adapted(**batch).loss.backward(), adapted, CPU)


def trl(quick: bool) -> Iterator[dict[str, Any]]:
    """Yield steps of TRL's trainer, whose head never holds all logits."""
    for run in TRL_RUNS[:1] if quick else TRL_RUNS:
        rows, width, vocab = run.get("rows", 2), run.get("width", 64), run.get("vocab", 400)
        bf16, nf4, checkpointing = run.get("bf16", False), run.get("nf4", False), run["checkpointing"]
        model = llama(8, 288, vocab=vocab)
        shape = RunShape(
            torch.float32, 4 if nf4 else None, torch.bfloat16 if bf16 else None, 16,
            torch.bfloat16 if nf4 else torch.float32, tiles_in_place=False,
        )  # fmt: skip
        read = {name: v for name, v in token_batches(1, rows, width, 400)[0].items() if name != "attention_mask"}
        counted = trace_bytes(*bare(model), read, shape, target_modules=LLAMA_TARGETS)
        found: list[dict[str, Any]] = []
        case = {
            "batch": f"{rows} x {width}",
            "vocabulary": vocab,
            "bf16": bf16,
            "nf4": nf4,
            "checkpointing": checkpointing,
        }

        def work(host: Any, case: dict[str, Any] = case, counted: ModelBytes = counted, found: Any = found) -> None:
            found += _trl_rows(host, case, counted)

        in_trl(_nf4(model) if nf4 else model, work, rows=rows, width=width, checkpointing=checkpointing, bf16=bf16)
        yield from found


def _nf4(model: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = hf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
        return hf.AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32)


def _trl_rows(host: Any, case: dict[str, Any], counted: ModelBytes) -> Iterator[dict[str, Any]]:
    model, batch = host.model, host.step_batches(1)[0]
    stack = find_layers(model)
    for name, layers in placements(len(stack)).items():
        whole = len(layers) == len(stack)
        narrowing = None if whole else narrow(model, stack, layers)
        with nullcontext() if whole else GradientEntry(model, stack, layers[0]):
            peak = peak_bytes(lambda: host.training_step(model, batch), model, CPU)
        clear_gradients(model)
        if narrowing is not None:
            narrowing.undo()
        training = Training(case["checkpointing"], not (whole and case["checkpointing"]), optimizer_state=0)
        yield row(case | {"layers": name}, counted, layers, training, peak)


def summary(rows: list[dict[str, Any]], columns: dict[str, Callable[[dict[str, Any]], float]]) -> dict[str, Any]:
    """Return median and worst of the absolute errors."""
    found = {}
    for name, of in columns.items():
        errors = [abs(of(row)) for row in rows]
        found[name] = {"median": round(statistics.median(errors), 4), "worst": max(errors), "cases": len(errors)}
    return found


PARTS: dict[str, Callable[[bool], Iterator[dict[str, Any]]]] = {"plain": plain, "trl": trl, "steps": steps}


def main() -> None:
    """Run one part."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--part", choices=PARTS, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = list(PARTS[args.part](args.quick))
    if args.part == "steps":
        kinds = list(rows[0]["error"])
        columns = {kind: (lambda row, kind=kind: row["error"][kind]) for kind in kinds}
        found = {
            f"checkpointing {'on' if on else 'off'}": summary(
                [row for row in rows if row["checkpointing"] is on], columns
            )
            for on in (True, False)
        }
    else:
        found = summary(rows, {name: (lambda row, name=name: row[name]) for name in ("error", "error without weights")})
    sys.stderr.write(f"{found}\n")
    report(f"memory_fit-{args.part}", args, {"summary": found, "rows": rows})


if __name__ == "__main__":
    main()
