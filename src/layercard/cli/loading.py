"""Loads a model and its tokenizer from a local folder or the Hub; what cannot be loaded is one clear error.

`skeleton` gives the model without weights, which is all that most plans need: a second, and a download of kilobytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch
import transformers
from torch import nn

from layercard.cli.options import ModelSource
from layercard.data import Task
from layercard.errors import ModelError
from layercard.precision import fast_dtype, name_of, slow_on
from layercard.progress import Progress

_CLASSES = {
    "causal": transformers.AutoModelForCausalLM,
    "masked": transformers.AutoModelForMaskedLM,
    "classification": transformers.AutoModelForSequenceClassification,
}


def load_config(name: str) -> Any:
    """Return the model's configuration; raise `ModelError` where there is none."""
    path = Path(name).expanduser()
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if not path.exists() and looks_local:
        raise ModelError(f"The model {name} does not exist. Give a folder with a config.json, or a Hub id.")
    try:
        return transformers.AutoConfig.from_pretrained(_where(name))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The model {name} cannot be read: {_first_line(error)} Give a folder with a config.json, or a Hub id."
        ) from None


def task_of(config: Any, name: str) -> Task:
    """Return what the model was saved to do."""
    architecture = (config.architectures or ["CausalLM"])[0]
    if architecture.endswith("ForSequenceClassification"):
        return "classification"
    if architecture.endswith("ForMaskedLM"):
        return "masked"
    if architecture.endswith(("CausalLM", "LMHeadModel", "ForConditionalGeneration")):
        return "causal"
    raise ModelError(
        f"The model {name} is a {architecture}, which has no head that layercard can probe. Supported are causal and masked "
        "language models and sequence classifiers; save it with such a head."
    )


def skeleton(name: str) -> transformers.PreTrainedModel:
    """Return the model without weights, on the meta device."""
    config = load_config(name)
    auto = _CLASSES[task_of(config, name)]
    try:
        with torch.device("meta"):
            model: transformers.PreTrainedModel = auto.from_config(config)
    except ValueError as error:
        raise ModelError(_unsupported(name, error)) from None
    return model


def load_model(source: ModelSource) -> nn.Module:
    """Return the model with its weights, on its device, ready for a probe."""
    config = load_config(source.name)
    device = source.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options: dict[str, Any] = {"dtype": _dtype(source, config, device)}
    if source.load_in_4bit:
        options |= {"quantization_config": _nf4(device), "device_map": {"": device}}
    try:
        with Progress(f"loading {source.name}"):
            model = _CLASSES[task_of(config, source.name)].from_pretrained(_where(source.name), **options)
    except ValueError as error:
        raise ModelError(_unsupported(source.name, error)) from None
    except OSError as error:
        raise ModelError(
            f"The weights of {source.name} cannot be loaded: {_first_line(error)} Give a folder that holds them, or a Hub id."
        ) from None
    loaded: nn.Module = model if source.load_in_4bit else model.to(device)
    return loaded


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


def load_tokenizer(name: str) -> Any:
    """Return the model's tokenizer; raise `ModelError` where there is none."""
    try:
        return transformers.AutoTokenizer.from_pretrained(_where(name))
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(
            f"The tokenizer of {name} cannot be loaded: {_first_line(error)} Save it beside the model with "
            "`tokenizer.save_pretrained`."
        ) from None


def longest_input(config: Any) -> int:
    """Return the most tokens of an example, 1024 or what the model has positions for."""
    text = config.get_text_config()
    limit = text.max_position_embeddings if hasattr(text, "max_position_embeddings") else None
    return min(1024, limit) if isinstance(limit, int) else 1024


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


def _unsupported(name: str, error: Exception) -> str:
    return f"The model {name} cannot be loaded: {_first_line(error)} Give a model that transformers knows."


def _first_line(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    line = line if len(line) <= 200 else f"{line[:200]}…"
    return line if line.endswith((".", "!", "?", "…")) else f"{line}."
