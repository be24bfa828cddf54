"""What a run was, for those who read its report later: model, data, adapter, training, device, command.

Local folders are cut to their own name and secrets taken out of the command, since output folders get pushed to the Hub.
Reading the rows for the data's digest draws no random number and decodes nothing.
"""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch

from layercard.anatomy.adapters import adapter_sites
from layercard.anatomy.checkpoint_names import is_checkpointing
from layercard.cards.fingerprint import public_id
from layercard.cards.privacy import redact

if TYPE_CHECKING:
    from layercard.hosts.protocol import Host
    from layercard.placement.placement import LayerPlacement

DIGESTED_ROWS = 16
SECRET_WORDS = ("token", "password", "passwd", "secret", "api_key", "apikey")
"""A flag whose name ends in one of these has its value left out of the command."""


def run_identity(host: Host, *, command: Sequence[str] | None = None) -> dict[str, Any]:
    """Return what report.json holds under `run`; null where the host does not tell. `command` is the process's own."""
    return {
        "model": _model(host),
        "data": data_identity(vars(host.trainer).get("train_dataset")),
        "adapter": _adapter(host.model),
        "training": _training(host),
        "device": _device(host.device),
        "started": None,
        "ended": None,
        "command": public_command(own_command() if command is None else command),
    }


def identity_at_start(identity: Mapping[str, Any], trainer: Any) -> dict[str, Any]:
    """Return the identity with the batch that training begins with, which `auto_find_batch_size` may have made smaller."""
    rows = trainer._train_batch_size // max(1, trainer.args.n_gpu)
    return {**identity, "training": {**identity["training"], "micro_batch_rows": rows}}


def now() -> str:
    """Return the time in UTC, to the second, as ISO 8601 writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def why_placed(placement: LayerPlacement) -> dict[str, Any]:
    """Return what report.json holds under `placement`: what placement.json does, without what stands beside it."""
    values = placement.to_dict() | {"digest": placement.digest()}
    return {name: value for name, value in values.items() if name not in ("layers", "num_layers", "schema_version")}


def own_command() -> list[str]:
    """Return the words that started this process; a module that `python -m` ran is named as such, not by its file."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is None:
        return list(sys.argv)
    return ["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]


def public_command(arguments: Sequence[str]) -> str:
    """Return a command line without the folders of its paths and without the values of flags that hold secrets."""
    shown, hidden = [], False
    for argument in arguments:
        flag, equals, _ = argument.partition("=")
        secret = flag.startswith("-") and flag.lower().replace("-", "_").endswith(SECRET_WORDS)
        text = "…" if hidden else f"{flag}=…" if secret and equals else redact(argument)
        shown.append(text if text == "…" or text.endswith("=…") else shlex.quote(text))
        hidden = secret and not equals
    return " ".join(shown)


def data_identity(dataset: Any) -> dict[str, Any]:
    """Return what is known of a training set: `name`, `split`, `rows`, and a `digest` of some of its rows as trained on."""
    found: dict[str, Any] = {"name": None, "split": None, "rows": None, "digest": None}
    kind = type(dataset)
    if hasattr(kind, "__len__"):
        found["rows"] = len(dataset)
    if kind.__module__.split(".", 1)[0] != "datasets":
        return found | {"name": None if dataset is None else f"{kind.__module__}.{kind.__name__}"}
    info = dataset.info
    parts = (info.dataset_name, None if info.config_name == "default" else info.config_name)
    found["name"] = public_id(" ".join(part for part in parts if part)) or None
    found["split"] = None if dataset.split is None else str(dataset.split)
    return found | {"digest": _digest(dataset, found["rows"])}


def _digest(dataset: Any, rows: int | None) -> str | None:
    """Return a hash of rows spread evenly over a `datasets.Dataset`, as stored; None for a stream."""
    if not rows:
        return None
    chosen = [i * rows // min(rows, DIGESTED_ROWS) for i in range(min(rows, DIGESTED_ROWS))]
    stored = dataset.with_format("arrow")[chosen].to_pylist()
    return hashlib.sha256(repr([rows, [sorted(row.items()) for row in stored]]).encode()).hexdigest()[:16]


def _model(host: Host) -> dict[str, Any]:
    base: Any = host.model
    config: Any = base.config
    quantization = vars(config).get("quantization_config")
    values = quantization if isinstance(quantization, Mapping) else {} if quantization is None else vars(quantization)
    method = values.get("quant_method")
    return {
        "id": public_id(config.name_or_path) or None,
        "revision": vars(config).get("_commit_hash"),
        "architecture": type(base.get_base_model()).__name__,
        "quantization": None if method is None else str(getattr(method, "value", method)),
    }


def _adapter(model: Any) -> dict[str, Any]:
    """What is adapted; `rank` is a list where ranks differ."""
    name, config = next(iter(model.peft_config.items()))
    sites = adapter_sites(model)
    ranks = sorted({int(wrapper.r[name]) for site in sites for wrapper in site.wrappers})
    targets = sorted({parameter.rsplit(".", 1)[-1] for s in sites for parameter in (s.parameters or (s.name,))})
    return {
        "target_modules": targets,
        "rank": ranks[0] if len(ranks) == 1 else ranks,
        "alpha": config.lora_alpha,
        "dropout": config.lora_dropout,
    }


def _training(host: Host) -> dict[str, Any]:
    args = host.trainer.args
    precision = "bfloat16" if args.bf16 else "float16" if args.fp16 else "as loaded"
    return {
        "trainer": host.name,
        "learning_rate": float(args.learning_rate),
        "optimizer": str(getattr(args.optim, "value", args.optim)),
        "micro_batch_rows": args.per_device_train_batch_size,
        "micro_batches_a_step": args.gradient_accumulation_steps,
        "processes": args.world_size,
        "precision": precision,
        "gradient_checkpointing": is_checkpointing(args),
        "seed": args.seed,
    }


def _device(device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(device), "threads": None}
    return {"type": device.type, "name": None, "threads": torch.get_num_threads() if device.type == "cpu" else None}
