"""`layercard trl-sft`: checks the arguments, then runs `layercard_trl.sft` under `accelerate launch`, as `trl sft` does.

What TRL's parser does not know goes to accelerate, `--accelerate_config` included; what accelerate does not know
either is refused here, before a process starts.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

from layercard.errors import EXIT_FAILED, EXIT_INTERRUPTED, SettingsError, nearest
from layercard_trl import compat
from layercard_trl.sft import check, make_parser, parse

MODULE = "layercard_trl.sft"
PROGRAM = "layercard trl-sft"


def launch(arguments: Sequence[str]) -> int:
    """Train in launched processes and return the exit code: 0, or that of the first process that failed.

    Raises `SettingsError` before anything starts where an argument is wrong. A process that was interrupted counts as 130,
    one ended by another signal as 1.
    """
    values, from_file, from_line = parse(arguments, prog=PROGRAM)
    check(values)
    try:
        launch_arguments = compat.accelerate_config([*from_file, *from_line])
    except ValueError as error:
        raise SettingsError(str(error)) from error
    accelerate = _accelerate_arguments(launch_arguments, without(arguments, from_line))
    code = compat.launch_failure(accelerate)
    if code is None:
        return 0
    if code == -signal.SIGINT:
        return EXIT_INTERRUPTED
    return code if code > 0 else EXIT_FAILED


def without(arguments: Sequence[str], left_over: Sequence[str]) -> list[str]:
    """Return `arguments` without those in `left_over`, which is a subsequence of them."""
    remaining = list(left_over)
    kept = []
    for argument in arguments:
        if remaining and argument == remaining[0]:
            remaining.pop(0)
        else:
            kept.append(argument)
    return kept


def _accelerate_arguments(launch_arguments: list[str], training: list[str]) -> object:
    """Return accelerate's parsed arguments; raise `SettingsError` for what accelerate does not know."""
    parser = compat.launch_parser()
    known, unknown = parser.parse_known_args([*launch_arguments, "-m", MODULE, *training])
    if unknown or known.training_script != MODULE:
        wrong = unknown[0] if unknown else known.training_script
        flags = [option for action in make_parser()._actions for option in action.option_strings]
        raise SettingsError(
            f"`{wrong}` is no argument of `trl sft`, `accelerate launch` or layercard.{nearest(wrong, flags)} "
            f"`{PROGRAM} --help` lists them."
        )
    return parser.parse_args([*launch_arguments, "-m", MODULE, *training])
