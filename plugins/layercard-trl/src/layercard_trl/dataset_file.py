"""`--dataset_name FILE`: a JSON, CSV or Parquet file given where TRL's `trl sft` takes a folder or a Hub id.

The file becomes an entry of TRL's own dataset mixture, so that TRL reads it by the builder of `datasets` for its kind.
Offers `check_dataset` and `check_output`, before anything is loaded, and `with_dataset_file`, for the arguments that TRL's
`main` gets.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layercard.errors import SettingsError
from layercard.records import first_record, kind_of, local_file

if TYPE_CHECKING:
    from trl import SFTConfig

BUILDERS = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".parquet": "parquet"}
"""The builders of `datasets` by what a file ends in; each reads gzipped files too."""
SPLIT = "train"
"""What TRL calls all rows of a mixture that it does not split."""


def check_dataset(values: Sequence[Any]) -> None:
    """Raise `DataError` where `--dataset_name` is a path that is not there or a file that cannot be read.

    Raises `SettingsError` where there is none, or other arguments ask of a file what one file has not.
    """
    script, mixture = _script(values), _mixture(values)
    if script.dataset_name is None and not mixture.datasets:
        raise SettingsError("`--dataset_name` is missing. Give a local file, a folder or a Hub id.")
    path = _given(script, mixture)
    if path is None:
        return
    first_record(str(path))
    if script.dataset_config is not None:
        raise _refused(f"`--dataset_config` is {script.dataset_config!r}", path, "has no configurations. Drop it.")
    if script.dataset_train_split != SPLIT:
        found = f"`--dataset_train_split` is {script.dataset_train_split!r}"
        raise _refused(
            found, path, "is read as one split, `train`. Drop it, or give a folder with a file for each split."
        )
    if _training(values).eval_strategy != "no" and mixture.test_split_size is None:
        found = f"`--eval_strategy` is {str(_training(values).eval_strategy.value)!r}"
        raise _refused(
            found,
            path,
            "holds no rows to evaluate on. Give a folder with train and test files, or `--test_split_size 0.1`.",
        )


def check_output(values: Sequence[Any]) -> None:
    """Raise `SettingsError` where `--output_dir` is a file."""
    folder = _training(values).output_dir
    if folder is not None and Path(folder).is_file():
        raise SettingsError(f"`--output_dir` is {folder}, which is a file. Give a folder; it may be missing.")


def with_dataset_file(values: Sequence[Any]) -> tuple[Any, ...]:
    """Return TRL's arguments with a file in `--dataset_name` made an entry of the mixture; others as they are."""
    from trl.scripts.utils import DatasetConfig

    script, mixture = _script(values), _mixture(values)
    path = _given(script, mixture)
    if path is None:
        return tuple(values)
    entry = DatasetConfig(path=BUILDERS[kind_of(path)], data_files=glob.escape(str(path)))
    changed = {
        id(script): replace(script, dataset_name=None),
        id(mixture): replace(mixture, datasets=[entry], streaming=script.dataset_streaming or mixture.streaming),
    }
    return tuple(changed.get(id(value), value) for value in values)


def _given(script: Any, mixture: Any) -> Path | None:
    """Return the file in `--dataset_name`; a mixture in the YAML file goes before it, as in TRL."""
    return local_file(script.dataset_name) if script.dataset_name and not mixture.datasets else None


def _refused(found: str, path: Path, why: str) -> SettingsError:
    return SettingsError(f"{found}, and `--dataset_name` is the file {path}, which {why}")


def _script(values: Sequence[Any]) -> Any:
    from trl import ScriptArguments

    return next(value for value in values if isinstance(value, ScriptArguments))


def _mixture(values: Sequence[Any]) -> Any:
    from trl import DatasetMixtureConfig

    return next(value for value in values if isinstance(value, DatasetMixtureConfig))


def _training(values: Sequence[Any]) -> SFTConfig:
    from trl import SFTConfig

    return next(value for value in values if isinstance(value, SFTConfig))
