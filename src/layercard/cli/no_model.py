"""Says what a path is that holds no model which the command line reads: an adapter, a GGUF file, any other file."""

from __future__ import annotations

import json
from pathlib import Path

ADAPTER = "adapter_config.json"


def no_model(path: Path) -> str | None:
    """Return what `path` is and what to give instead, None where it may be a model or is not there."""
    if path.is_dir() and not (path / "config.json").is_file():
        if (path / ADAPTER).is_file():
            return _adapter(path)
        gguf = next(iter(sorted(path.glob("*.gguf"))), None)
        return None if gguf is None else _gguf(gguf)
    if path.suffix.lower() == ".gguf" and path.is_file():
        return _gguf(path)
    if path.is_file() and path.suffix != ".json":
        return f"The model {path} is a file. Give the folder that holds it, with its config.json, or a Hub id."
    return None


def _adapter(path: Path) -> str:
    base = _base(path)
    of = "" if base is None else f" of {base}"
    give = "the model that it adapts" if base is None else base
    return (
        f"The folder {path} holds a PEFT adapter{of} and no model. Give {give}; or for the adapted model, write it with "
        "`AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload().save_pretrained(other_folder)`."
    )


def _base(path: Path) -> str | None:
    try:
        found = json.loads((path / ADAPTER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    name = found.get("base_model_name_or_path") if isinstance(found, dict) else None
    return name if isinstance(name, str) and name else None


def _gguf(path: Path) -> str:
    return (
        f"The model {path} is a GGUF file, and weights are read from safetensors alone. Write it as those in Python: "
        f"`AutoModelForCausalLM.from_pretrained({str(path.parent)!r}, gguf_file={path.name!r}).save_pretrained(folder)`, and its "
        "tokenizer likewise; `cards build --gguf` then records which quantization it came from."
    )
