"""What a command's answer means and what to do next: the lines that end it, short enough to be read at once.

`training_lines` gives the lines to paste into TRL, Axolotl and Python; they choose what the plan chose.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from layercard.cli.output import Output

if TYPE_CHECKING:
    from layercard.placement.placement import LayerPlacement

LONGEST = 100
"""Letters of a sentence at most."""
SHARED = (
    "model", "target_modules", "task", "dtype", "load_in_4bit", "device", "dataset", "dataset_config", "split", "column",
    "max_length", "layers_path", "probe_examples", "probe_batch_size", "probe_rank",
)  # fmt: skip
"""Parameters of `layercard probe` that `layercard plan` needs again."""
MATCH = "layercard cards match MODEL DATA"


@dataclass(frozen=True)
class Training:
    """What the lines to paste have to say beside the layers."""

    layers_path: str | None = None
    other_stacks: str | None = None
    target_modules: Sequence[str] | None = None
    """None: every linear module."""
    language: bool = True
    """Whether the model is a causal language model, which TRL's SFT and Axolotl train."""
    schedule: str | None = None


def say_next(output: Output, *lines: str) -> None:
    """Print what to do next; lines that begin with spaces are commands or code."""
    output.say(f"Next: {lines[0]}")
    for line in lines[1:]:
        output.say(line)


def say_command(output: Output, what: str, *words: str) -> None:
    """Print what a command does, and below it the command, quoted for a shell."""
    say_next(output, what, f"  {shlex.join(words)}")


def say_plan_next(output: Output, placement: LayerPlacement, path: Path | None, run: Training) -> None:
    """Print how the planned layers are trained."""
    if placement.is_all and run.schedule is None:
        say_next(output, "train as you would without layercard; every layer is adapted.")
        return
    say_next(output, "train these layers. Paste one of:", *training_lines(placement, path, run))
    if path is None:
        output.say("`-o placement.json` keeps the choice with its reason, for `--check` and for colleagues.")
    output.say("The run measures speed and quality against all-layer LoRA and writes report.html.")


def training_lines(placement: LayerPlacement, path: Path | None, run: Training) -> Iterator[str]:
    """Yield the lines that train these layers, from the file `path` where they were written into one."""
    also = {"layers_path": run.layers_path, "other_stacks": run.other_stacks, "schedule": run.schedule}
    beside = {name: value for name, value in also.items() if value is not None}
    key, layers = _layers(placement, path)
    if run.language:
        flags = [word for name, value in beside.items() for word in (f"--lora_layers_{name}", value)]
        shown = ",".join(map(str, layers)) if isinstance(layers, list) and len(layers) > 1 else str(layers)
        targets = ["all-linear"] if run.target_modules is None else list(run.target_modules)
        words = ["--use_peft", "--lora_target_modules", *targets, "--lora_layers", shown, *flags]
        yield f"  TRL      layercard trl-sft … {shlex.join(words)}"
        named = [f"{key}: {layers}", *(f"{name}: {_plain(value)}" for name, value in beside.items())]
        yield f"  Axolotl  lora_layers: {'{' + ', '.join(named) + '}' if beside else layers}"
    yield f"  Python   run = layercard.place(trainer, lora_layers={ {key: layers, **beside} if beside else layers!r})"


def _layers(placement: LayerPlacement, path: Path | None) -> tuple[str, str | list[int]]:
    """Return the setting that names the layers inside a mapping, and its value: a file, a list, or all of them."""
    if path is not None:
        return "lora_layers", str(path)
    return ("strategy", "all") if placement.is_all else ("indices", list(placement.layers))


def _plain(value: str) -> str:
    """Return a text as YAML writes it inside braces."""
    return f'"{value}"' if "," in value else value


def sentences(text: str) -> list[str]:
    """Return a long statement as short sentences, a line each: cut at semicolons, then before the bracket that ends it."""
    return [line for part in re.split(r"; (?![^(]*\))", text.rstrip(".")) for line in _short(part)]


def _short(part: str) -> Iterator[str]:
    aside = re.fullmatch(r"(.*) \(([^()]*)\)", part)
    if len(part) >= LONGEST and aside is not None:
        yield from (f"{_upper(one)}." for one in aside.groups())
    else:
        yield f"{_upper(part)}."


def _upper(text: str) -> str:
    """Return a text with a capital first letter, but for one that begins with the key of a Layer Card."""
    return text if "/" in text.split(" ", 1)[0] else text[:1].upper() + text[1:]


def say_sentences(output: Output, texts: Iterable[str]) -> None:
    """Print statements as short sentences, a line each."""
    for text in texts:
        for line in sentences(text):
            output.say(line)
