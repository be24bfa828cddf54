"""Every place where layercard-trl depends on how a TRL or accelerate version is made.

Written for TRL 1.16 and accelerate 1.15. It offers the parts of `trl sft` that are reused, and nothing of placement.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from layercard.data.chat import text_tokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn


def sft_dataclasses() -> tuple[Any, ...]:
    """Return the argument dataclasses of this TRL's `trl sft`, in the order its `main` takes them."""
    from trl.scripts.sft import make_parser

    return tuple(make_parser().dataclass_types)


def sft_main() -> Callable[..., None]:
    """Return the main function of this TRL's `trl sft`."""
    from trl.scripts.sft import main

    return main


def accelerate_config(launch_args: Sequence[str]) -> list[str]:
    """Return the launch arguments with TRL's `--accelerate_config NAME` turned into accelerate's `--config_file PATH`."""
    from trl.cli.accelerate_config import resolve_accelerate_config_argument

    return resolve_accelerate_config_argument(list(launch_args))


def launch_parser() -> Any:
    """Return the argument parser of this accelerate's `accelerate launch`."""
    from accelerate.commands.launch import launch_command_parser

    return launch_command_parser()


def launch_failure(arguments: Any) -> int | None:
    """Run `accelerate launch` and return the exit code of the first process that failed, or None.

    accelerate reports a failed process by an exception of its own: `CalledProcessError` from one process,
    `ChildFailedError` from torch's elastic launcher where there are several.
    """
    import subprocess

    from accelerate.commands.launch import launch_command
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch_command(arguments)
    except subprocess.CalledProcessError as failed:
        return failed.returncode
    except ChildFailedError as failed:
        return failed.get_first_failure()[1].exitcode
    return None


def token_log_probs(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of the labels, (rows, width - 1), and a mask of the same shape, True where one counts.

    Through the fused head that TRL's trainers give the base model since 1.16: it computes them in tiles, and keeps the
    router's auxiliary loss apart.
    """
    outputs = model(**inputs, use_cache=False, fused_lm_head=True)
    return outputs.log_probs, outputs.label_mask


def sft_tokens(tokenizer: Any, dataset: Any) -> list[dict[str, list[int]]]:
    """Return `input_ids` and `labels` of each row of a `datasets.Dataset` as `SFTTrainer` prepares it, uncut and unpacked.

    Its preparation reads three attributes of the trainer, which are set here as its constructor sets them by default.
    """
    import datasets
    from trl import SFTConfig, SFTTrainer

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TRL sets a default under a name that transformers calls old
        args = SFTConfig(output_dir=folder, max_length=None, use_cpu=True, bf16=False, report_to="none")
    trainer = SFTTrainer.__new__(SFTTrainer)
    trainer._tokenizer = text_tokenizer(tokenizer)
    trainer.chat_template = None
    trainer.completion_only_loss = {"prompt", "completion"} <= set(dataset.column_names)
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        rows = trainer._prepare_dataset(dataset, tokenizer, args, False, None, "probe")
    finally:
        if shown:
            datasets.enable_progress_bars()
    return [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows]
