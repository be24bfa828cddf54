"""A toy run that is really trained: a tiny Llama with LoRA in a real `transformers.Trainer`, placed as any other.

What it tells is read from the placed run, from its report, and from the weights of the adapters afterwards.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layercard.doctor.check import Check, failed, ok, warning

if TYPE_CHECKING:
    from layercard.cost.speedup import SpeedupReport
    from layercard.pipeline.placed_run import PlacedRun

LAYERS, ADAPTED = 6, 2
MIN_ENTRY = 3
"""No layer below it is chosen, so that the gradient entry has to move."""
PLANNED, STEPS, ROWS, BATCH = 4000, 12, 32, 4
"""So many steps planned pay for timing on a busy machine too; so many are trained."""
WANTED = {"strategy": "high", "num_layers": ADAPTED, "min_entry": MIN_ENTRY}
"""By score, so that the probe runs too."""
BUDGET = 0.5
"""Share of the toy's steps that timing may take."""


def adapted_model() -> Any:
    """Return a tiny Llama of `LAYERS` layers with LoRA on every linear module, the same each time."""
    from peft import LoraConfig, get_peft_model

    from layercard.testing.material import tiny_llama

    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", lora_dropout=0.0)
    return get_peft_model(tiny_llama(LAYERS), config)


def rows() -> list[dict[str, list[int]]]:
    """Return `ROWS` tokenized examples; every token is a label."""
    from layercard.testing.material import examples

    return [{"input_ids": tokens, "labels": tokens} for tokens in examples(ROWS)]


def tokenizer() -> Any:
    """Return a tokenizer of as many words as the toy has: hosts want one, rows that are tokenized need none."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from layercard.testing.material import VOCABULARY

    special = {
        "pad_token": "<pad>",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
    }  # numbered as in the toy's configuration
    words = [*special.values(), *(f"w{number}" for number in range(len(special), VOCABULARY))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<eos>"))
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def plain_trainer(folder: Path) -> Any:
    """Return a `transformers.Trainer` over the toy that writes into `folder`."""
    from transformers import Trainer, TrainingArguments

    from layercard.testing.material import batches

    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=PLANNED,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-2,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs in one process would be DataParallel, which is not timed

    def collate(examples: list[dict[str, list[int]]]) -> Any:
        return batches([row["input_ids"] for row in examples], len(examples))[0]

    return Trainer(model=adapted_model(), args=arguments, train_dataset=rows(), data_collator=collate)


def check_toy(folder: Path, place: Callable[..., PlacedRun]) -> Iterator[Check]:
    """Yield what a placed toy run in `folder` shows: host, layers that trained, gradient entry, speed."""
    run = trained(lambda: plain_trainer(folder), place, measure_budget=BUDGET)
    yield check_host("transformers run", run)
    yield check_entry(run.report)
    yield check_speed(run.report)


def trained(build: Callable[[], Any], place: Callable[..., PlacedRun], **settings: Any) -> PlacedRun:
    """Build a trainer over the toy, place it, train it for `STEPS` steps, all in silence, and return the placed run."""
    with silence():
        trainer = build()
        run = place(trainer, lora_layers=WANTED, guard=False, **settings)
        trainer.add_callback(_stop_early())
        trainer.train()
    return run


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep what a toy run prints from a person."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def _stop_early() -> Any:
    from transformers import TrainerCallback

    class StopEarly(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = control.should_training_stop or state.global_step >= STEPS

    return StopEarly()


def check_host(name: str, run: PlacedRun) -> Check:
    """Return whether the trainer was placed into, and whether the adapters of the placed layers and no others learned.

    LoRA's factor B begins at zero, so what of it is not zero was trained.
    """
    learned = {
        run.stack.layer_of(parameter)
        for parameter, value in run.model.named_parameters()
        if "lora_B" in parameter and bool(value.any())
    }
    layers = ", ".join(map(str, run.layers))
    if learned == set(run.layers):
        return ok(name, f"{run.host.name} was placed; layers {layers} of 0–{LAYERS - 1} learned")
    return failed(
        name,
        f"{run.host.name}: layers {layers} were placed, and {sorted(map(str, learned))} learned",
        "Do not train with this installation; install the tested releases above.",
    )


def check_entry(report: SpeedupReport) -> Check:
    """Return whether backpropagation ended at the lowest adapted layer, by the layers that ran backward."""
    entry, ran = report.gradient_entry, report.backward_layers
    lowest = min(report.layers)
    if entry.get("moved") and ran is not None and min(ran) == lowest:
        return ok("gradient entry", f"moved to layer {lowest}; layers {_span(ran)} ran backward")
    found = f"layers {_span(ran)} ran backward" if ran else "which layers ran backward is not known"
    return warning(
        "gradient entry",
        f"not moved to layer {lowest}: {entry.get('obstacle') or 'no reason is known'}; {found}",
        "Runs place layers and save less time; install the tested releases above.",
    )


def check_speed(report: SpeedupReport) -> Check:
    """Return whether the toy's steps could be timed; how fast they are says nothing of a real model."""
    speed = report.verdict["speed"]
    if speed["kind"] in ("faster", "slower"):
        return ok("timing", f"measured: a step of the toy is {report.step_speedup:.2f}x as fast as with all-layer LoRA")
    if speed["kind"] == "too noisy to tell":
        return warning(
            "timing", "too noisy to tell on the toy", "Measure where nothing else runs; larger models are steadier."
        )
    return warning("timing", speed["sentence"], "Runs report no speedup where steps cannot be timed.")


def _span(layers: tuple[int, ...] | None) -> str:
    return ", ".join(map(str, sorted(layers or ())))
