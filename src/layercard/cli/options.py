"""The options that commands share; those for settings are generated from the fields of `PlacementSettings`.

Names are written with dashes; underscores, as in YAML and TRL's flags, are taken too.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Collection
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click

from layercard.errors import nearest, one_of
from layercard.settings import PlacementSettings

if TYPE_CHECKING:
    from layercard.cli.tasks import Purpose
    from layercard.data import Task

Function = TypeVar("Function", bound=Callable[..., Any])

CONTEXT = {"token_normalize_func": lambda name: name.replace("_", "-"), "help_option_names": ["-h", "--help"]}
TASKS = (
    "causal", "seq2seq", "masked", "classification", "regression", "multi-label", "token-classification",
    "question-answering", "multiple-choice",
)  # fmt: skip
"""Those of `layercard.data`, which is imported when a command runs."""
PARTS = (
    "prompt", "completion", "messages", "conversations", "tools", "chat_template_kwargs", "text", "text_pair", "label",
    "tokens",
)  # fmt: skip
"""The parts that columns can play, as `layercard.data` has them."""
SPLIT = "train"
"""Which split of a dataset is read by default."""
PROBE_SETTINGS = ("layers_path", "random_seed", "probe_examples", "probe_batch_size", "probe_rank")


class IntegerList(click.ParamType):
    """Whole numbers separated by commas."""

    name = "integers"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> list[int]:
        """Return the numbers; fail as click does where one is none."""
        if isinstance(value, list):
            return value
        try:
            return [int(part) for part in str(value).strip("[] ").split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers separated by commas.", param, context)


def settings_options(names: Collection[str]) -> Callable[[Function], Function]:
    """Return a decorator that adds an option for each of these settings, with the help of its field."""
    hints = get_type_hints(PlacementSettings)
    chosen = [field for field in fields(PlacementSettings) if field.name in names]

    def decorate(function: Function) -> Function:
        for field in reversed(chosen):
            flag, kind = f"--{field.name.replace('_', '-')}", _plain(hints[field.name])
            form: dict[str, Any] = {"type": _click_type(kind), "metavar": _metavar(kind)}
            if kind is bool:
                flag, form = f"{flag}/--no-{flag[2:]}", {}
            option = click.option(flag, field.name, default=None, help=_help(field), **form)
            function = option(function)
        return function

    return decorate


def _help(field: Field[Any]) -> str:
    text: str = field.metadata["help"]
    default = {True: "yes", False: "no"}.get(field.default) if isinstance(field.default, bool) else field.default
    return text if default is None else f"{text}  [default: {default}]"


def _plain(hint: Any) -> Any:
    """Return the type of an optional value."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(part for part in get_args(hint) if part is not type(None))
    return hint


def _click_type(kind: Any) -> Any:
    if get_origin(kind) is list:
        return IntegerList()
    return str if get_origin(kind) is Literal else kind


def _metavar(kind: Any) -> str | None:
    return f"[{'|'.join(get_args(kind))}]" if get_origin(kind) is Literal else None


def settings_from(values: dict[str, Any]) -> PlacementSettings:
    """Return the validated settings among a command's values; raises `SettingsError`."""
    given = {f.name: values[f.name] for f in fields(PlacementSettings) if values.get(f.name) is not None}
    return PlacementSettings.from_user(given.pop("lora_layers", "auto"), **given)


@dataclass(frozen=True)
class ModelSource:
    """Which model, and how it is loaded."""

    name: str
    dtype: str
    load_in_4bit: bool
    device: str | None
    task: Task | None = None
    """What it is to do, where the user says."""
    purpose: Purpose | None = None
    """What it is to do, once that is decided."""


@dataclass(frozen=True)
class DataSource:
    """Which data, and how they are read."""

    name: str
    config: str | None
    split: str
    columns: dict[str, str]
    max_length: int | None


def model_options(function: Function) -> Function:
    """Add the argument MODEL and how it is loaded."""
    for decorator in (
        click.option(
            "--device", default=None, help="Where it runs, such as `cpu` or `cuda:0`; a GPU where there is one."
        ),
        click.option(
            "--load-in-4bit", is_flag=True, help="Load 4-bit NF4 weights through bitsandbytes, as QLoRA does."
        ),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "saved", "float32", "bfloat16", "float16"]),
            default="auto",
            show_default=True,
            help="Of the weights; `auto` as they were `saved`, or float32 where this CPU is slow in that.",
        ),
        click.option(
            "--task",
            type=click.Choice(TASKS),
            metavar="TASK",
            help=f"What the model is trained to do: {', '.join(f'`{task}`' for task in TASKS)}.  [default: as it was saved; a "
            "base encoder classifies rows with labels]",
        ),
        click.option(
            "--target-modules", metavar="NAME,…", help="Modules that LoRA will adapt; every linear one by default."
        ),
        click.argument("model"),
    ):
        function = decorator(function)
    return function


def data_options(*, required: bool) -> Callable[[Function], Function]:
    """Return a decorator that adds `--dataset` and how it is read."""
    named = click.option("--dataset", required=required, help="A JSON, JSONL, CSV or Parquet file, or a Hub id.")
    return lambda function: named(reading_options(function))


def reading_options(function: Function) -> Function:
    """Add how a dataset is read."""
    for decorator in (
        click.option(
            "--max-length",
            type=click.IntRange(min=2),
            help="Tokens an example; the rest is cut. [default: 1024, or what the model takes]",
        ),
        click.option(
            "--column",
            "column",
            multiple=True,
            metavar="PART=NAME",
            help=f"Which column plays which part: {one_of(PARTS)}.",
        ),
        click.option("--split", default=SPLIT, show_default=True, help="Of a dataset on the Hub."),
        click.option("--dataset-config", help="Of a dataset on the Hub that has several."),
    ):
        function = decorator(function)
    return function


def output_options(function: Function) -> Function:
    """Add `--json`, and `--debug` for those who write it after the command."""
    debug = click.option("--debug", is_flag=True, is_eager=True, expose_value=False, callback=_debug, hidden=True)
    as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document as the last line.")
    return as_json(debug(function))


def _debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    context.obj["debug"] = context.obj["debug"] or value


def model_source(values: dict[str, Any]) -> ModelSource:
    """Return what `model_options` gave."""
    return ModelSource(values["model"], values["dtype"], values["load_in_4bit"], values["device"], values["task"])


def data_source(values: dict[str, Any]) -> DataSource:
    """Return what `data_options` gave."""
    columns = {}
    for text in values["column"]:
        part, equals, name = text.partition("=")
        if not (part and equals and name):
            raise click.UsageError(f"`--column` is {text!r}. Write PART=NAME, such as `prompt=question`.")
        if part not in PARTS:
            raise click.UsageError(
                f"`--column` names the part {part!r}.{nearest(part, PARTS)} Parts are {one_of(PARTS)}."
            )
        columns[part] = name
    config, split, length = values["dataset_config"], values["split"], values["max_length"]
    if split != SPLIT and values["dataset"] is not None and Path(values["dataset"]).expanduser().is_file():
        raise click.UsageError(
            f"`--split` is {split!r}, and {values['dataset']} is one file, which is read whole. Drop it."
        )
    return DataSource(values["dataset"], config, split, columns, length)


def target_modules(values: dict[str, Any]) -> list[str] | None:
    """Return the names given, or None for every linear module."""
    text = values["target_modules"]
    if text is None or text == "all-linear":
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise click.UsageError("`--target-modules` names none. Name modules, such as `q_proj,v_proj`, or leave it out.")
    return names
