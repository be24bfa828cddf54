"""One rank of runs under DeepSpeed on CPU. Arguments: the folder and the ways, as `zero2,zero3`.

Writes what `host_run` writes to <way>/rank<rank>.json; under ZeRO-3 why nothing can be probed, and what is trained where layers
are named.
"""

import json
import sys
from pathlib import Path

import deepspeed
from host_run import make_trainer, run

from layercard import place
from layercard.errors import LayercardError
from layercard.ranks import rank
from tiny import tiny_model


def refused(trainer):
    try:
        place(trainer, lora_layers="low")
    except LayercardError as error:
        return str(error)
    return "not refused"


def zero3(folder):
    whole = make_trainer("sft", folder / f"out{rank()}", "zero3", whole=WHOLE)
    told = {"whole": refused(whole), "partitioned": refused(make_trainer("sft", folder / "none", "zero3"))}
    run = place(whole, lora_layers=[2, 3], guard=False)
    whole.train()
    trained = run.report.placed.trainable_parameters, run.report.baseline.trainable_parameters
    return told | {"trained": trained, "moved": run.report.gradient_entry["moved"]}


if __name__ == "__main__":
    deepspeed.init_distributed(dist_backend="gloo")
    WHOLE = tiny_model("llama")  # before ZeRO-3 is asked for, which partitions whatever is made from then on
    for way in sys.argv[2].split(","):
        folder = Path(sys.argv[1]) / way
        folder.mkdir(exist_ok=True)
        told = zero3(folder) if way == "zero3" else run("sft", folder, way)
        (folder / f"rank{rank()}.json").write_text(json.dumps(told))
