"""report.html, read as a browser would, without one."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import pytest
from jinja2 import UndefinedError

from layercard.report.page import render
from layercard.report.page.render import html, prose, save_html
from reports import full_report, short_report, told

VOID = {"meta", "link", "br", "img", "hr", "input"}
SVG_LEAVES = {"rect", "line", "path", "circle"}
BAD = "<script>alert(1)</script>"


class Reader(HTMLParser):
    """Holds every element with its attributes and ancestors; fails where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, Any], tuple[str, ...]]] = []
        self.texts: dict[str, str] = {}
        self._open: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute stands twice in <{tag}>"
        self.elements.append((tag, dict(attrs), tuple(name for name, _ in self._open)))
        if tag not in VOID:
            self._open.append((tag, dict(attrs).get("id")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SVG_LEAVES, f"<{tag}/> is not closed in HTML"
        self.elements.append((tag, dict(attrs), tuple(name for name, _ in self._open)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1][0] == tag, f"</{tag}> closes {self._open[-1:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1][1]:
            self.texts[self._open[-1][1]] = self.texts.get(self._open[-1][1], "") + data

    def all(self, *tags: str) -> list[dict[str, Any]]:
        return [attributes for tag, attributes, _ in self.elements if tag in tags]


MEASURED = {"baseline": {"forward": 1.0, "optimizer": 0.1}, "placed": {"forward": 0.5, "optimizer": 0.1}}
PAGES = {
    "full": html(full_report()),
    "short": html(short_report()),
    "partial": html(full_report(partial=True)),
    "all layers": html(full_report(layers=tuple(range(30)))),
    "phases": html(full_report(phases=MEASURED)),
    "compared": html(full_report(), [("other", full_report(8)), ("short", short_report())]),
}


@pytest.fixture(params=list(PAGES))
def page(request: pytest.FixtureRequest) -> str:
    return PAGES[request.param]


def test_tags_nest_and_every_id_and_reference_fits(page):
    read = Reader(page)
    ids = [a["id"] for _, a, _ in read.elements if "id" in a]
    assert len(ids) == len(set(ids))
    named = [part for _, a, _ in read.elements for part in (a.get("aria-labelledby") or "").split()]
    linked = [a["href"].removeprefix("#") for a in read.all("a")]
    drawn = re.findall(r"url\(#([\w-]+)\)", page)
    assert set(named) | set(linked) | set(drawn) <= set(ids)


def test_it_runs_no_script_and_loads_nothing(page):
    read = Reader(page)
    assert not read.all("script", "link", "img", "iframe", "object", "embed", "form", "base")
    assert not [n for _, a, _ in read.elements for n in a if n.startswith("on") or n in ("src", "style", "srcset")]
    assert all(a["href"].startswith("#") for a in read.all("a"))
    style = page[page.index("<style>") : page.index("</style>")]
    assert "@import" not in style and "url(" not in style and "http" not in style


def test_names_from_data_are_text_wherever_they_stand(tmp_path):
    bad = full_report(
        run={"model": {"id": BAD}, "data": {"name": BAD}, "command": BAD, "device": {"name": f'"{BAD}`'}},
        placement={"reason": BAD, "score": BAD, "cards": [BAD], "expected": {"share_kept": 0.9, "metric": BAD}},
        scores={BAD: [0.1] * 30},
        unavailable={BAD: BAD, "phases": f"`{BAD}`"},
        memory_method=BAD,
        versions={"layercard": BAD, BAD: BAD},
        quality={"kind": BAD, "reason": BAD},
    )
    text = html(told(bad), [(BAD, bad)])
    assert "<script" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert not Reader(text).all("script")
    assert Reader(text).texts["report-json"].count(BAD) > 5


def test_the_report_is_in_it_as_data(page):
    held = json.loads(Reader(page).texts["report-json"])
    assert held["schema_version"] == 1
    assert json.loads(Reader(PAGES["full"]).texts["report-json"]) == json.loads(json.dumps(full_report().to_dict()))


def test_eighty_layers_stay_under_200_kb():
    assert len(html(full_report(80), [("other", full_report(80))]).encode()) < 200_000


def test_the_same_report_gives_the_same_bytes(tmp_path):
    assert html(full_report()) == html(full_report())
    assert save_html(full_report(), tmp_path / "new" / "report.html").read_text() == html(full_report())


def test_sections_stand_in_the_order_in_which_they_are_asked_for():
    headings = [a["id"] for a in Reader(PAGES["compared"]).all("section")]
    assert headings == [
        "verdict", "layers", "time", "pairs", "break-even", "quality", "costs", "compare", "unknown", "reproduce", "data",
    ]  # fmt: skip


def test_every_figure_is_followed_by_its_table(page):
    tags = [(tag, len(path)) for tag, _, path in Reader(page).elements if tag in ("figure", "table", "section", "svg")]
    for i, (tag, _) in enumerate(tags):
        if tag == "figure":
            after = [name for name, _ in tags[i + 1 :] if name != "svg"]
            assert after[0] == "table"


def test_pictures_and_tables_are_named_for_those_who_do_not_see_them(page):
    read = Reader(page)
    for attributes in read.all("svg"):
        assert attributes.get("aria-hidden") == "true" or (
            attributes["role"] == "img" and attributes["aria-labelledby"]
        )
    pictures = [a for a in read.all("svg") if a.get("role") == "img"]
    assert len(pictures) == len(read.all("figure"))
    assert len(read.all("caption")) == len(read.all("table"))
    assert all(a.get("scope") in ("col", "row") for a in read.all("th"))
    assert len(read.all("main")) == len(read.all("h1")) == 1 and {"header", "nav", "footer"} <= {
        t for t, _, _ in read.elements
    }


def test_the_keyboard_reaches_what_it_must_in_reading_order(page):
    read = Reader(page)
    reached = [(tag, a) for tag, a, _ in read.elements if tag in ("a", "summary") or a.get("tabindex") == "0"]
    assert reached[0][1]["href"] == "#main"
    assert not [a for _, a, _ in read.elements if a.get("tabindex") not in (None, "0", "-1")]
    scrolled = [a for a in read.all("div", "pre") if a.get("tabindex") == "0"]
    assert all(a["role"] == "region" and a["aria-label"] for a in scrolled)
    assert len(scrolled) == len(read.all("table")) + 1


def test_chosen_layers_differ_in_shape_and_not_by_colour_alone():
    section = PAGES["full"].split('<section id="layers"')[1].split("</section>")[0]
    assert section.count('class="chosen"') == section.count('class="mark"') == 8
    assert section.count('class="frozen"') == section.count('class="rest"') == 22
    assert section.count('class="entry"') == 1 and "-hatch" in section


def test_without_numbers_reasons_stand_in_their_place():
    text = PAGES["short"]
    assert not re.search(r"\bnan\b|None", text.split("<pre")[0])
    assert Reader(text).all("figure")  # the layers are known
    assert text.split("<pre")[0].count("cannot pay for timing") >= 1


def test_a_run_that_has_not_ended_says_so():
    assert "Training had not ended" in PAGES["partial"].split("<pre")[0]
    assert "Training had not ended" not in PAGES["full"]


def test_names_that_a_template_lacks_are_errors():
    with pytest.raises(UndefinedError):
        render._environment().from_string("{{ page.nothing }}").render(page=PAGES)


def test_back_quotes_become_code_and_odd_ones_stay():
    assert prose("`a<b` & c") == "<code>a&lt;b</code> &amp; c"
    assert prose("a ` b") == "a ` b"


def test_old_reports_without_the_newer_keys_are_drawn():
    old = replace(
        full_report(), run={}, placement={}, scores={}, predicted={}, timing={}, verdict={}, seconds_saved=None
    )
    assert Reader(html(old)).all("figure")


# Colours: relative luminance and contrast as WCAG 2.2 defines them.


def _schemes() -> dict[str, dict[str, str]]:
    style = (files("layercard.report.page") / "templates" / "style.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root\{([^}]*)\}", style)
    found = [dict(re.findall(r"--([\w-]+):(#[0-9a-f]+)", block)) for block in blocks]
    assert len(found) == 3 and found[0].keys() == found[1].keys() == found[2].keys()
    return dict(zip(("light", "dark", "print"), found, strict=True))


def _luminance(colour: str) -> float:
    digits = colour.removeprefix("#")
    digits = "".join(c * 2 for c in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def _contrast(one: str, other: str) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_colours_have_the_contrast_that_wcag_asks_for(scheme):
    colours = _schemes()[scheme]
    assert _contrast("#000", "#fff") == pytest.approx(21)
    for text in ("ink", "muted", "accent"):
        for ground in ("page", "card"):
            assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for drawn in ("accent", "frozen", "warn", *(f"fill-{i}" for i in range(6))):
        assert _contrast(colours[drawn], colours["card"]) >= 3, drawn
    for i in range(6):
        assert _contrast(colours["on-fill"], colours[f"fill-{i}"]) >= 4.5, i
    assert _contrast(colours["accent"], colours["soft"]) >= 3
