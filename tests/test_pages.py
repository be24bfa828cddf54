"""The README stays short, and links of the README and of docs/ lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))])
def test_links_within_the_repository_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(\s*([^)\s]+)\s*\)", text):
        if not target.startswith(("http://", "https://")):
            path, _, part = target.partition("#")
            there = ((ROOT / page).parent / path).resolve() if path else ROOT / page
            assert there.exists(), f"{page}: {target}"
            if part:
                heads = re.findall(r"(?m)^#+ (.+)$", there.read_text(encoding="utf-8"))
                assert part in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def test_the_readme_stays_short_and_keeps_its_two_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 150
    assert "\n    make demo" in readme and "\n    make test" in readme
