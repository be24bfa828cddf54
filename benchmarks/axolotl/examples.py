"""How many of Axolotl's own LoRA examples take `lora_layers: auto`, and why the others do not.

    git clone https://github.com/axolotl-ai-cloud/axolotl
    .venv-axolotl/bin/python benchmarks/axolotl/examples.py --examples axolotl/examples [--write]

Each YAML file under the folder with `adapter: lora` or `qlora` gets the key and goes through the checks that run while
Axolotl validates it. Whether fused kernels are on is asked of Axolotl's own validator, as on one GPU, or on two for files
that shard. No model is loaded, so kernels that Axolotl turns off for an architecture count as on. Files that a
configuration names (`deepspeed_configs/…`) are looked for beside the folder, as Axolotl does.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import arguments, report

from layercard.errors import LayercardError
from layercard_axolotl import compat
from layercard_axolotl.refusals import LORA, refuse_configuration, weights_on_one_rank

TRAINER, EARLY, DEPTH = (
    "after the adapter is built",
    "before the adapter, fused kernels on",
    "by depth, weights on the first rank alone",
)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--examples", type=Path, required=True, help="the folder `examples` of a checkout of Axolotl")
    args = parser.parse_args()
    folder = args.examples.resolve()
    os.chdir(folder.parent)
    logging.disable(logging.WARNING)
    accepted: Counter[str] = Counter()
    refused: dict[str, list[str]] = defaultdict(list)
    for path in sorted(p for ending in ("*.yml", "*.yaml") for p in folder.rglob(ending)):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict) or config.get("adapter") not in LORA:
            continue
        try:
            refuse_configuration({**config, "lora_layers": "auto"})
        except LayercardError as reason:
            refused[str(reason).split(". ")[0]].append(str(path.relative_to(folder)))
        else:
            accepted[way(config)] += 1
    show(accepted, refused)
    files = accepted.total() + sum(map(len, refused.values()))
    report("axolotl-examples", args, {"files": files, "accepted": dict(accepted), "refused": dict(refused)})


def way(config: dict[str, Any]) -> str:
    """Return where in the run layers are chosen."""
    if weights_on_one_rank(config):
        return DEPTH
    return EARLY if compat.fused_kernels(on_gpus(config)) and not config.get("rl") else TRAINER


def on_gpus(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration as Axolotl's validator completes it on a machine with GPUs."""
    from axolotl.utils.schemas.config import AxolotlConfigWCapabilities

    gpus = 2 if config.get("fsdp_config") or config.get("deepspeed") else 1
    seen = {**config, "capabilities": {"n_gpu": gpus}, "env_capabilities": {"torch_version": "2.13.0"}}
    completed: dict[str, Any] = AxolotlConfigWCapabilities.check_auto_enable_lora_kernels(seen)
    return completed


def show(accepted: Counter[str], refused: dict[str, list[str]]) -> None:
    """Print how many files went each way, and each reason with its files."""
    for name, count in accepted.most_common():
        print(f"{count:4}  accepted: layers are chosen {name}")
    for reason, files in sorted(refused.items(), key=lambda item: -len(item[1])):
        print(f"{len(files):4}  refused: {reason}")
        print(*(f"        {file}" for file in files), sep="\n")


if __name__ == "__main__":
    main()
