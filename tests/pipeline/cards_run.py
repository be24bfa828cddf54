"""One rank of a run under torchrun that places by Layer Cards. Argument: the output directory.

Writes the placement, its cards and what each rank probed to rank<r>.json in the output directory.
"""

import json
import os
import sys
from pathlib import Path

from layercard import place
from own_card import deep_trainer

if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    run = place(deep_trainer(folder, ddp_backend="gloo"), measure=False)
    told = run.placement.to_dict() | {"scores": run.scores["resnorm"].importance.tolist()}
    (folder / f"rank{rank}.json").write_text(json.dumps(told))
