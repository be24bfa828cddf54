"""Which releases of other packages layercard was tested with.

`least` is the oldest release that the packages ask for, `newest` the latest that the whole suite was run on. A test holds
both against the pyproject files and the Makefile.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Releases:
    """From which release on a package is taken, and up to which it was tested."""

    least: str
    newest: str


HOSTS = {"trl": "layercard-trl", "axolotl": "layercard-axolotl"}
"""Packages whose trainers need a plugin of layercard's."""
PART_OF = {"trl": "axolotl"}
"""Hosts that another host brings in a release of its own choice: without their plugin they are its business alone."""
NEEDED = ("torch", "transformers", "peft", "accelerate")
TESTED = {
    "torch": Releases("2.6", "2.13.0"),
    "transformers": Releases("5.0", "5.24.0"),
    "peft": Releases("0.18", "0.21.2"),
    "accelerate": Releases("1.10.1", "1.15.0"),
    "trl": Releases("1.16", "1.16.0"),
    "axolotl": Releases("0.19.0", "0.21.0"),
}
