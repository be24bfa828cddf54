"""Every error that layercard raises on purpose.

    LayercardError                  anything a user can act on; carries an exit code for the command line
    ├── SettingsError               a setting is wrong: field, bad value, what is allowed, nearest name
    ├── ModelError                  the model's layers, adapters or initialisation do not allow placement
    │   └── LayersNotFoundError     no stack of layers, or more than one
    ├── DataError                   nothing can be learned from the examples given
    │   └── TooFewExamplesError     fewer of them than a score needs
    ├── HostError                   the trainer is not one that layercard can place into, or is too far along
    ├── ProbeError                  the probe ran and its numbers cannot be used
    ├── PlacementError              a placement cannot be applied, or did not take effect
    ├── QualityError                the placed layers kept too little in a trial, and the run was told to stop then
    ├── CardError                   a Layer Card cannot be read, or does not hold what it must
    ├── PluginError                 two plugins claim one name, or one asks for what is not there
    ├── RankError                   another process of this run failed, with an error that is none of these
    └── UntrainableError            training itself would fail or learn nothing, whatever layers are adapted; it is beside a
                                    `DataError` or `ProbeError` wherever it is raised

Each message has three parts: what was found, what is supported, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CHECK_FAILED = 3
EXIT_QUALITY = 4
EXIT_INTERRUPTED = 130
"""128 and the number of SIGINT, as shells have it."""


class LayercardError(Exception):
    """Base of all errors that a user can act on."""

    exit_code = EXIT_FAILED


class SettingsError(LayercardError, ValueError):
    """A setting is wrong."""

    exit_code = EXIT_USAGE


class ModelError(LayercardError):
    """The model cannot be probed or placed as it is."""


class LayersNotFoundError(ModelError):
    """No stack of layers was found, or more than one."""


class DataError(LayercardError):
    """The examples cannot be probed."""


class TooFewExamplesError(DataError):
    """A score needs more examples than there are; training needs no score."""


class HostError(LayercardError):
    """The trainer cannot be placed into."""


class ProbeError(LayercardError):
    """The probe's numbers cannot be used."""


class PlacementError(LayercardError):
    """A placement cannot be applied, or did not take effect."""


class CardError(LayercardError):
    """A Layer Card cannot be used."""


class QualityError(LayercardError):
    """The placed layers kept too little of all-layer LoRA's gain in a trial before training."""

    exit_code = EXIT_QUALITY


class PluginError(LayercardError):
    """A plugin clashes with another, or asks for what does not exist."""


class RankError(LayercardError):
    """Another process of this run failed, so this one cannot go on."""


class UntrainableError(LayercardError):
    """Training would fail or learn nothing, whatever layers are adapted; stops a run that needs no score too."""


class NothingToLearnError(DataError, UntrainableError):
    """There is no example, or none with a label."""


class BrokenLossError(ProbeError, UntrainableError):
    """The base model's loss is not a finite number."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean `x`?"``, or an empty string where nothing is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean `{close[0]}`?" if close else ""


def one_of(names: Iterable[str]) -> str:
    """Return the names in back quotes, separated by commas, for a message."""
    return ", ".join(f"`{name}`" for name in names)
