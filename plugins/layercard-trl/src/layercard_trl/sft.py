"""`trl sft` with layer placement: runs as `accelerate launch -m layercard_trl.sft …` and under `layercard trl-sft …`.

TRL's own `main` builds the trainer, trains, saves and pushes, and changes with every release; so it is called, not
rewritten. `placing` makes every `SFTTrainer` place its layers at the entry of `train()`, which is the point between
construction and training wherever TRL's script puts it, and which no training can pass by.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from yaml import YAMLError

from layercard import plugins
from layercard.cli.output import starting
from layercard.errors import LayercardError, SettingsError, nearest
from layercard.pipeline.before.names import check_names
from layercard.settings import PlacementSettings
from layercard_trl import compat
from layercard_trl.arguments import FLAG, LayerArguments
from layercard_trl.dataset_file import check_dataset, check_output, with_dataset_file

if TYPE_CHECKING:
    from layercard.pipeline.placed_run import PlacedRun

EXAMPLE = """\
example:
  layercard trl-sft --model_name_or_path Qwen/Qwen3-0.6B --output_dir out \\
      --dataset_name trl-lib/Capybara --use_peft --lora_layers auto
"""


NO_GPU = " On a machine without a GPU add `--use_cpu`."


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, as TRL's own help does, and the example as it is."""


def make_parser(prog: str | None = None) -> Any:
    """Return a `TrlParser` that takes every argument of `trl sft` and the layer flags."""
    from trl import TrlParser

    return TrlParser(
        (*compat.sft_dataclasses(), LayerArguments), prog=prog, epilog=EXAMPLE, formatter_class=_Help
    )  # fmt: skip


def parse(arguments: Sequence[str], *, prog: str | None = None) -> tuple[tuple[Any, ...], list[str], list[str]]:
    """Return the parsed dataclasses, and what the YAML file and the command line hold beside them.

    What is left over is meant for `accelerate launch`. Raises `SettingsError` where the file cannot be used.
    """
    try:
        with starting():
            *values, from_file, from_line = make_parser(prog).parse_args_and_config(
                list(arguments), return_remaining_strings=True, separate_remaining_strings=True
            )
    except (OSError, ValueError, TypeError, YAMLError) as error:
        cpu = NO_GPU if "use_cpu" in str(error) else ""
        raise SettingsError(f"The arguments cannot be used: {' '.join(str(error).split())}{cpu}") from error
    return tuple(values), from_file, from_line


def check(values: Sequence[Any]) -> PlacementSettings | None:
    """Return the placement settings, None without `--lora_layers`; raise `LayercardError` before anything loads."""
    from trl import ModelConfig

    model = next(value for value in values if isinstance(value, ModelConfig))
    settings: PlacementSettings | None = values[-1].to_settings()
    if settings is not None and not model.use_peft:
        raise SettingsError(
            f"`--{FLAG}` is given without `--use_peft`, so the run would train all weights and there are no adapters to "
            "place. Add `--use_peft`."
        )
    if model.model_name_or_path is None:
        raise SettingsError("`--model_name_or_path` is missing. Give a local folder or a Hub id.")
    check_dataset(values)
    check_output(values)
    if settings is not None:
        check_names(settings, plugins.extensions())
    return settings


@contextmanager
def placing(settings: PlacementSettings | None) -> Iterator[list[PlacedRun]]:
    """Place the layers of every `SFTTrainer` at the entry of its `train()`; yield the list that collects the runs.

    With `settings` None nothing is changed.
    """
    placed: list[PlacedRun] = []
    if settings is None:
        yield placed
        return
    from trl import SFTTrainer

    from layercard import place

    original = SFTTrainer.train
    inherited = "train" not in vars(SFTTrainer)

    def train(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        placed.append(place(trainer, lora_layers=settings))
        return original(trainer, *args, **kwargs)

    SFTTrainer.train = train
    try:
        yield placed
    finally:
        if inherited:
            del SFTTrainer.train
        else:
            SFTTrainer.train = original


def main(*values: Any) -> PlacedRun | None:
    """Train as `trl sft` does with its parsed dataclasses, the last of `values` being `LayerArguments`.

    Returns the placed run, or None without `--lora_layers`.
    """
    settings = check(values)
    with placing(settings) as placed:
        compat.sft_main()(*with_dataset_file(values[:-1]))
    return placed[0] if placed else None


def run(arguments: Sequence[str]) -> PlacedRun | None:
    """Parse `arguments` and train; raise `SettingsError` where an argument is unknown."""
    values, from_file, from_line = parse(arguments)
    if from_line:
        raise SettingsError(f"`{from_line[0]}` is no argument of `trl sft` or layercard.{_near(from_line[0])}")
    _refuse_misspelt(from_file)
    return main(*values)


def _refuse_misspelt(left_over: Sequence[str]) -> None:
    """Keys of the YAML file that nobody takes may be accelerate's, but not those that look like layercard's."""
    for text in left_over:
        if text.startswith("--lora"):
            raise SettingsError(f"`{text.removeprefix('--')}` in the YAML file is no known key.{_near(text)}")


def _near(flag: str) -> str:
    return nearest(flag, [f"--{name}" for name in LayerArguments.__dataclass_fields__])


def _command_line() -> None:
    try:
        run(sys.argv[1:])
    except LayercardError as error:
        if os.environ.get("LAYERCARD_DEBUG"):
            raise
        rank = f"rank {os.environ['RANK']}: " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
        sys.stderr.write(f"Error: {rank}{error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    _command_line()
