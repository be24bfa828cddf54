"""Reads saved adapters by plain PEFT, whichever release is found first: `read_adapters.py FOLDER RELEASE NAMES…`.

Writes what it found beside each adapter; a test starts it. Knows nothing of layercard.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftModel
from peft_cases import CASES

from adapted import adapter_names, logits_of


def reading(name: str, folder: Path, saved: str) -> dict[str, Any]:
    """Return the adapters that PEFT finds, and the logits; or the error that it raises."""
    case = CASES[name]
    try:
        model = PeftModel.from_pretrained(case.bare(folder), folder / saved / name)
    except RuntimeError as error:  # sizes that do not fit
        return {"error": str(error)}
    return {"adapters": adapter_names(model), "logits": logits_of(model, case.kind.collate(case.kind.examples(3)))}


def main(folder: Path, release: str, names: list[str]) -> None:
    assert peft.__version__ == release, f"{peft.__version__} in {peft.__file__}"
    kinds = ("placed", "all layers")
    read = {s: {name: reading(name, folder, s) for name in names if (folder / s / name).exists()} for s in kinds}
    torch.save(read, folder / f"{release}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
