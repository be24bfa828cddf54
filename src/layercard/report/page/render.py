"""`html`: report.html from a report, the same bytes for the same report.

Jinja2 escapes every string and refuses names that are not there; the style sheet alone is put in as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from layercard.cost.speedup import SpeedupReport
from layercard.files import json_text, write_text
from layercard.report.page.contents import contents

NAME = "report.html"


def html(report: SpeedupReport, others: Sequence[tuple[str, SpeedupReport]] = ()) -> str:
    """Return the page of `report`, beside `others` (name, report) where there are any."""
    template = _environment().get_template("report.html.j2")
    return template.render(
        page=contents(report, others),
        data=json_text(report.to_dict()),
        style=_style(),
        version=report.versions.get("layercard", ""),
    )


def save_html(report: SpeedupReport, path: Path, others: Sequence[tuple[str, SpeedupReport]] = ()) -> Path:
    """Write the page atomically and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, html(report, others))
    return path


def prose(text: str) -> Markup:
    """Return escaped text in which what stands between back quotes is set as code."""
    parts = [str(escape(part)) for part in text.split("`")]
    if len(parts) % 2 == 0:  # one back quote has no partner
        return escape(text)
    return Markup("".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts)))


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("layercard.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["prose"] = prose
    return made


@cache
def _style() -> Markup:
    return Markup((files("layercard.report.page") / "templates" / "style.css").read_text(encoding="utf-8").strip())
