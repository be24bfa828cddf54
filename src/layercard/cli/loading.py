"""Loads a model and its tokenizer from a local folder or the Hub; what cannot be loaded is one clear error.

Code that comes with a model is never run, and nobody is asked whether it should: transformers asks at a terminal unless it
is told.

`skeleton` gives the model without weights, which is all that most plans need: a second, and a download of kilobytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import click
import torch
import transformers
from safetensors import SafetensorError
from torch import nn

from layercard.cli.no_model import no_model
from layercard.cli.options import DataSource, ModelSource
from layercard.cli.tasks import PICTURED, Purpose, purpose_of
from layercard.errors import ModelError, SettingsError, one_of
from layercard.precision import fast_dtype, name_of, slow_on
from layercard.progress import Progress
from layercard.random_state import random_state

Say: TypeAlias = Callable[[str], None]
TRUST = "trust_remote_code"
DAMAGED = (
    "The file is damaged, cut short, or a pointer that Git LFS left. Download it again (`git lfs pull` in a clone, or "
    "`hf download`)."
)
OTHER_SIZES = (
    "other sizes than its config.json says. Give the config.json that they were saved with, or take out the weights that are "
    "of another model."
)
WITHOUT_ITS_CODE: dict[str, Any] = {TRUST: False}


def load_config(name: str) -> Any:
    """Return the model's configuration; raise `ModelError` where there is none."""
    if not name:
        raise ModelError("The model's name is empty. Give a folder with a config.json, or a Hub id.")
    path = Path(name).expanduser()
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if not path.exists() and looks_local:
        raise ModelError(f"The model {name} does not exist. Give a folder with a config.json, or a Hub id.")
    if reason := no_model(path):
        raise ModelError(reason)
    if path.is_dir() and not (path / "config.json").is_file():
        # older transformers guess a model from the folder's name
        raise ModelError(f"The folder {name} holds no config.json. Give a folder that holds a model, or a Hub id.")
    try:
        return transformers.AutoConfig.from_pretrained(_where(name), **WITHOUT_ITS_CODE)
    except (OSError, ValueError) as error:
        raise _own_code(name, error) or ModelError(
            f"The model {name} cannot be read: {_first_line(error)} Give a folder with a config.json, or a Hub id."
        ) from None


def settled(source: ModelSource, data: DataSource | None, say: Say) -> ModelSource:
    """Return the source with what the model is to do, decided once by model, `--task` and dataset, and told.

    Raises `SettingsError` for a device that there is not.
    """
    if source.purpose is not None:
        return source
    _check_device(source.device)
    purpose = purpose_of(load_config(source.name), source.name, asked=source.task, data=data)
    for line in purpose.said:
        say(line)
    return replace(source, purpose=purpose)


def _check_device(name: str | None) -> None:
    if name is None:
        return
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch without CUDA asserts
        there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        raise SettingsError(
            f"`device` is {name!r}, which cannot be used here: {_first_line(error)} This machine has {one_of(there)}."
        ) from None


def skeleton(name: str, purpose: Purpose | None = None) -> transformers.PreTrainedModel:
    """Return the model without weights, on the meta device."""
    config = load_config(name)
    purpose = purpose or purpose_of(config, name)
    try:
        with torch.device("meta"):
            model: transformers.PreTrainedModel = purpose.auto.from_config(
                purpose.configured(config), **WITHOUT_ITS_CODE
            )
    except ValueError as error:
        raise _unsupported(name, error) from None
    return model


def load_model(source: ModelSource, say: Say = lambda line: None) -> nn.Module:
    """Return the model with its weights, on its device, ready for a probe; `say` is told which weights are new.

    New weights are drawn from seed 0, so that the same command gives the same scores.
    """
    config = load_config(source.name)
    purpose = source.purpose or purpose_of(config, source.name, asked=source.task)
    device = source.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options: dict[str, Any] = {"dtype": _dtype(source, config, device), "use_safetensors": True, **WITHOUT_ITS_CODE}
    if purpose.labels is not None:
        options |= {"ignore_mismatched_sizes": True}  # a new head may replace a saved one
    if source.load_in_4bit:
        options |= {"quantization_config": _nf4(device), "device_map": {"": device}}
    try:
        with random_state(0), _one_bar(), Progress(f"loading {source.name}"):
            model, told = purpose.auto.from_pretrained(
                _where(source.name), config=purpose.configured(config), output_loading_info=True, **options
            )
    except (ValueError, ImportError) as error:  # quantized weights need packages of their own
        raise _unsupported(source.name, error) from None
    except SafetensorError as error:
        raise ModelError(f"The weights of {source.name} cannot be read: {_first_line(error)} {DAMAGED}") from None
    except RuntimeError as error:
        if "mismatched" not in str(error):
            raise
        raise ModelError(f"The weights of {source.name} have {OTHER_SIZES}") from None
    except OSError as error:
        raise ModelError(
            f"The weights of {source.name} cannot be loaded: {_first_line(error)} Give a folder that holds them as safetensors, "
            f"or a Hub id.{_pickled(source.name)}"
        ) from None
    _check_sizes(source.name, model, told)
    if told["missing_keys"] and purpose.labels is None:
        say(_new_weights(source.name, sorted(told["missing_keys"])))
    loaded: nn.Module = model if source.load_in_4bit else model.to(device)
    return loaded


def _check_sizes(name: str, model: Any, told: Mapping[str, Any]) -> None:
    """Only a head may be of another size than the saved one: elsewhere random weights would be scored."""
    body = sorted(
        str(key[0]) for key in told["mismatched_keys"] if str(key[0]).startswith(f"{model.base_model_prefix}.")
    )
    if body:
        raise ModelError(f"The weights of {name} (`{body[0]}`) have {OTHER_SIZES}")


@contextmanager
def _one_bar() -> Iterator[None]:
    """Silence transformers' own bar, beside which `Progress` tells of the same work."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


def _dtype(source: ModelSource, config: Any, device: str) -> Any:
    """Return what to load the weights in: as asked, or as saved where this machine is fast in that, said where it is not."""
    if source.dtype not in ("auto", "saved"):
        return getattr(torch, source.dtype)
    saved = config.dtype
    if source.dtype == "saved" or not isinstance(saved, torch.dtype):
        return "auto"
    reason = slow_on(device, saved)
    if reason is None:
        return "auto"
    click.echo(f"{reason} The weights are loaded in float32; `--dtype saved` keeps {name_of(saved)}.", err=True)
    return torch.float32


def load_tokenizer(name: str, purpose: Purpose | None = None, say: Say = lambda line: None) -> Any:
    """Return the model's tokenizer, or the processor with which a model of pictures and text is trained on text.

    Where the processor's own packages or files are missing, the tokenizer alone is returned, and `say` is told. Raises
    `ModelError` where there is none.
    """
    if purpose is not None and purpose.task == "causal" and load_config(name).model_type in PICTURED:
        try:
            return transformers.AutoProcessor.from_pretrained(_where(name), **WITHOUT_ITS_CODE)
        except (OSError, ValueError, ImportError) as error:  # a processor needs packages for pictures
            say(
                f"The processor of {name} cannot be loaded, so rows are read by its tokenizer alone: {_first_line(error)}"
            )
    try:
        return transformers.AutoTokenizer.from_pretrained(_where(name), **WITHOUT_ITS_CODE)
    except (OSError, ValueError, ImportError) as error:
        raise _own_code(name, error) or ModelError(
            f"The tokenizer of {name} cannot be loaded: {_first_line(error)} Save it beside the model with "
            "`tokenizer.save_pretrained`."
        ) from None


def _where(name: str) -> str:
    path = Path(name).expanduser()
    return str(path) if path.exists() else name


def _nf4(device: str) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ModuleNotFoundError:
        raise ModelError(
            "`--load-in-4bit` needs bitsandbytes, which is not installed. Install it with `pip install bitsandbytes`."
        ) from None
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=fast_dtype(device, torch.bfloat16),
    )


def _new_weights(name: str, keys: Sequence[str]) -> str:
    shown = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
    return f"{len(keys)} weights of {name} were not saved with it and are new: {shown}. Scores follow them too."


def _unsupported(name: str, error: Exception) -> ModelError:
    return _own_code(name, error) or ModelError(
        f"The model {name} cannot be loaded: {_first_line(error)} Give a model that transformers knows."
    )


def _pickled(name: str) -> str:
    """Return what to do with weights in a local folder that are a pickle file, which could run what it likes."""
    if not any(Path(name).expanduser().glob("pytorch_model*.bin")):
        return ""
    return (
        " Its pytorch_model.bin is a pickle file, which is not read. Where you trust it, load it in Python and write it again "
        "with `save_pretrained`."
    )


def _own_code(name: str, error: Exception) -> ModelError | None:
    """Return the error for a model that transformers cannot load without the code beside it, None for other errors."""
    if TRUST not in str(error):
        return None
    return ModelError(
        f"{name} comes with Python code of its own, which the command line never runs. Supported are models and tokenizers that "
        f"transformers knows by itself. Where you trust that code, load the model in Python with `{TRUST}=True`, and give it to "
        "`layercard.probe`, or its trainer to `layercard.place`."
    )


def _first_line(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    line = line if len(line) <= 200 else f"{line[:200]}…"
    return line if line.endswith((".", "!", "?", "…")) else f"{line}."
