"""How near the predictions of `layercard plan` are: peak memory against measured peaks, step time over random placements.

    python benchmarks/memory_fit/run.py --part plain|trl|steps [--quick] [--write]

`plain` are steps of PEFT models, `trl` those inside real `SFTTrainer.train()`; both measure with `cost/memory.py`, on a CPU a
count of live bytes without optimizer state, and predict from the configuration alone. Errors are relative; beside those of
the whole peak stand those of what is left without weights and adapters, which are known. `steps` draws 20 placements of a
TRL run, each timed against all-layer LoRA in alternation.
"""

from __future__ import annotations

import copy
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from peft import LoraConfig, get_peft_model

from layercard.anatomy.gradient_entry import GradientEntry
from layercard.anatomy.layers import find_layers
from layercard.anatomy.narrow import narrow
from layercard.cli.costs import plan_costs
from layercard.cost.memory import peak_bytes
from layercard.cost.peak import ModelBytes, Training, predict_peak
from layercard.cost.predict import UnitCosts, predict_step
from layercard.cost.timing import Variant, alternate
from layercard.cost.traced import RunShape, trace_bytes
from layercard.cost.unit_costs import measure_unit_costs
from layercard.cost.untouched import clear_gradients

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from common import LLAMA_TARGETS, arguments, llama, report, token_batches

from tiny import tiny_tokenizer

CPU = torch.device("cpu")
SHAPES = [(8, 192, 400), (12, 288, 4000), (6, 384, 32000)]
BATCHES = [(1, 64), (4, 128), (2, 256)]
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
PLACEMENTS, DEPTH = 20, 24


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
        for (rows, width), padded in product(batches, (False, True)):
            batch = token_batches(1, rows, width, vocab)[0]
            if padded:
                batch["attention_mask"][0, width // 2 :] = 0
            read = {name: values for name, values in batch.items() if padded or name != "attention_mask"}
            counted = trace_bytes(*_bare(model), read, RunShape(dtype=dtype, tiled_head=False))
            case = {"shape": f"{depth} x {hidden}, vocabulary {vocab}", "dtype": str(dtype).removeprefix("torch.")}
            case |= {"batch": f"{rows} x {width}", "padded": padded}
            yield from _plain_rows(model, batch, counted, case)


def _bare(model: Any) -> tuple[Any, Any]:
    with torch.device("meta"):
        bare = type(model)(copy.deepcopy(model.config))
    return bare, find_layers(bare)


def _plain_rows(model: Any, batch: Any, counted: ModelBytes, case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    depth = len(find_layers(model))
    for checkpointing, (name, layers) in product((False, True), placements(depth).items()):
        for moved in {len(layers) < depth, False}:
            training = Training(checkpointing, gradient_entry=moved or not checkpointing, optimizer_state=0)
            peak = _plain_peak(model, batch, layers, checkpointing=checkpointing, moved=moved)
            told = {"checkpointing": checkpointing, "layers": name, "entry moved": moved}
            yield row(case | told, counted, layers, training, peak)


def _plain_peak(model: Any, batch: Any, layers: Sequence[int], *, checkpointing: bool, moved: bool) -> int:
    config = LoraConfig(r=16, target_modules=LLAMA_TARGETS, layers_to_transform=list(layers))
    adapted = get_peft_model(copy.deepcopy(model), config).train()
    if checkpointing:
        adapted.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        adapted.enable_input_require_grads()
    with GradientEntry(adapted, find_layers(adapted), layers[0]) if moved else nullcontext():
        return peak_bytes(lambda: adapted(**batch).loss.backward(), adapted, CPU)


class InTraining(hf.TrainerCallback):
    """Runs `work(host)` where training begins, then stops the training."""

    def __init__(self, host: Any, work: Callable[[Any], None]) -> None:
        self.host, self.work = host, work

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Work on the prepared model."""
        with self.host.preserved():
            self.work(self.host)
        control.should_training_stop = True


def in_trl(model: Any, work: Callable[[Any], None], *, rows: int, width: int, checkpointing: bool, bf16: bool) -> None:
    """Run `work` inside `SFTTrainer.train()` on full rows of random tokens, all layers adapted."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from layercard_trl.host import SFTHost

    generator = torch.Generator().manual_seed(0)
    data = [{"input_ids": torch.randint(5, 399, (width,), generator=generator).tolist()} for _ in range(64)]
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            folder, use_cpu=True, bf16=bf16, max_steps=1000, per_device_train_batch_size=rows, report_to=[],
            activation_checkpointing=checkpointing, max_length=width, save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        lora = LoraConfig(r=16, target_modules=LLAMA_TARGETS, task_type="CAUSAL_LM")
        trainer = SFTTrainer(
            model, config, train_dataset=Dataset.from_list(data), processing_class=tiny_tokenizer(), peft_config=lora
        )
        trainer.add_callback(InTraining(SFTHost(trainer), work))
        trainer.train()


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
        counted = trace_bytes(*_bare(model), read, shape, target_modules=LLAMA_TARGETS)
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


def steps(quick: bool) -> Iterator[dict[str, Any]]:
    """Yield random placements, their measured step time over all-layer LoRA's, and the two predictions."""
    depth, hidden, count, rounds = (6, 96, 2, 2) if quick else (DEPTH, 288, PLACEMENTS, 7)
    generator = random.Random(0)
    drawn = [tuple(sorted(generator.sample(range(depth), generator.randint(1, depth - 1)))) for _ in range(count)]
    for checkpointing in (True, False):
        found: list[dict[str, Any]] = []
        model = llama(depth, hidden, vocab=400)
        planned, _ = plan_costs(*_bare(model), LLAMA_TARGETS, timed=True)
        own = measure_unit_costs(
            model, find_layers(model), token_batches(1, 2, 64, 400)[0], target_modules=_inside(model), rank=16
        )

        def work(host: Any, on: bool = checkpointing, units: Any = (planned, own), found: Any = found) -> None:
            for layers in drawn:
                found.append(
                    _step_row(
                        host, layers, on, dict(zip(("as plan times", "on the batch"), units, strict=True)), rounds
                    )
                )
                sys.stderr.write(f"{found[-1]}\n")

        in_trl(model, work, rows=2, width=64, checkpointing=checkpointing, bf16=False)
        yield from found


def _inside(model: Any) -> list[str]:
    return [
        name for name, _ in find_layers(model).layers[0].named_modules() if name.rpartition(".")[2] in LLAMA_TARGETS
    ]


def _step_row(
    host: Any, layers: tuple[int, ...], checkpointing: bool, units: dict[str, UnitCosts], rounds: int
) -> dict[str, Any]:
    model, batches = host.model, host.step_batches(4)
    stack = find_layers(model)
    narrowing = narrow(model, stack, layers)

    def step(number: int) -> None:
        host.training_step(model, batches[number % len(batches)])
        clear_gradients(model)

    def moved() -> AbstractContextManager[object]:
        return GradientEntry(model, stack, layers[0])

    try:
        variants = [Variant("all-layer", narrowing.all_layers, step), Variant("placed", moved, step)]
        alternate(variants, rounds=2)
        measured = alternate(variants, rounds=rounds).ratio("placed", "all-layer")
    finally:
        narrowing.undo()
    predicted = {
        name: predict_step(
            len(stack), layers, checkpointing=checkpointing, units=found, all_layer_entry=not checkpointing
        ).ratio
        for name, found in units.items()
    }
    return {
        "layers": list(layers),
        "checkpointing": checkpointing,
        "measured": round(measured.value, 3),
        "low": round(measured.low, 3),
        "high": round(measured.high, 3),
        "predicted": {name: round(value, 3) for name, value in predicted.items()},
        "error": {name: round(value / measured.value - 1, 4) for name, value in predicted.items()},
    }


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
