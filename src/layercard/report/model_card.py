"""The section "Layer placement" of an adapter's model card (README.md), through huggingface_hub's `ModelCard`.

The section stands between two comments, so that a later run replaces it; everything else of the card is left alone,
front matter included. `CardWriter` lets whatever writes a card, PEFT's `create_or_update_model_card` or a trainer's
`create_model_card`, be followed by the section: a save into any folder and a push have it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from layercard.cost.speedup import SpeedupReport
from layercard.report.markdown import markdown

log = logging.getLogger("layercard")

FILE = "README.md"
BEGIN, END = "<!-- layercard: begin -->", "<!-- layercard: end -->"
SECTION = re.compile(rf"{re.escape(BEGIN)}.*?{re.escape(END)}\n?", re.DOTALL)
HEADING = "## Layer placement"
VERSIONS = "### Framework versions"
"""PEFT adds its version right under this heading, so the section goes before it."""


def section(report: SpeedupReport) -> str:
    """Return the section, between its comments."""
    again = f"`LoraConfig(layers_to_transform={list(report.layers)})` adapts the same layers by hand."
    return "\n".join([BEGIN, HEADING, "", markdown(report), "", again, END, ""])


def with_section(text: str, wanted: str) -> str:
    """Return a card's text (without front matter) with the section in it once, where it stood or before the versions."""
    found = SECTION.search(text)
    if found is not None:
        rest = SECTION.sub("", text[found.end() :])
        return f"{text[: found.start()]}{wanted}{rest}"
    before, heading, after = text.partition(VERSIONS)
    separator = "" if before.endswith("\n\n") else "\n" if before.endswith("\n") else "\n\n"
    return f"{before}{separator}{wanted}" + (f"\n{heading}{after}" if heading else "")


def update_card(folder: Path, wanted: str) -> bool:
    """Put the section into the folder's README.md; return whether there was one. A card that cannot be is left and said."""
    from huggingface_hub import ModelCard

    path = folder / FILE
    if not path.is_file():
        return False
    try:
        card = ModelCard.load(path)
        text = with_section(card.text, wanted)
        if text != card.text:
            card.text = text
            card.save(path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        log.warning("The model card %s did not get its section on layer placement: %s", path, error)
    return True


@dataclass
class CardText:
    """The section as it is now; shared by the writers of one run, and all that they know of it."""

    section: str = ""


class CardWriter:
    """Stands in for the method `name` of `owner` that writes a README.md, and puts the section into what it wrote.

    It holds nothing but the owner and text, so that a copy or a pickle of a model takes no trainer along. `folder`
    says from the call's arguments where the card is; None where this process wrote none.
    """

    def __init__(self, owner: Any, name: str, text: CardText, folder: Callable[..., Path | None]) -> None:
        self._owner, self._name, self._text, self._folder = owner, name, text, folder

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Write the card as ever, then the section."""
        written = getattr(type(self._owner), self._name)(self._owner, *args, **kwargs)
        folder = self._folder(self._owner, *args, **kwargs)
        if folder is not None and self._text.section:
            update_card(folder, self._text.section)
        return written


class CardSection:
    """Joins what writes model cards in a run: `join`, `leave`, and `tell` where the report has changed."""

    def __init__(self, model: Any, trainer: Any) -> None:
        self._text = CardText()
        self._writers = ((model, "create_or_update_model_card", of_model), (trainer, "create_model_card", of_trainer))
        self._output_dir = Path(trainer.args.output_dir)

    def join(self) -> None:
        """Follow every card that model and trainer write from now on; a trainer of another kind may write none."""
        for owner, name, folder in self._writers:
            if hasattr(type(owner), name):
                vars(owner)[name] = CardWriter(owner, name, self._text, folder)

    def leave(self) -> None:
        """Let model and trainer write their cards as before."""
        for owner, name, _ in self._writers:
            vars(owner).pop(name, None)

    def tell(self, report: SpeedupReport) -> None:
        """Take over the report for cards written from now on, and put it into the output folder's card if there is one."""
        self._text.section = section(report)
        update_card(self._output_dir, self._text.section)


def of_model(model: Any, output_dir: Any, *_: Any, **__: Any) -> Path:
    """Where PEFT writes a card."""
    return Path(output_dir)


def of_trainer(trainer: Any, *_: Any, **__: Any) -> Path | None:
    """Where a trainer writes a card, on its first process."""
    return Path(trainer.args.output_dir) if trainer.is_world_process_zero() else None
