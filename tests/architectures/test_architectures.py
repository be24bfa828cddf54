"""docs/architectures.md: every model type is located, probed, placed, trained and reloaded, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from page import PAGE, VERSIONS, check_row
from registry import ARCHITECTURES
from stages import tried

from layercard.errors import LayercardError
from table_page import installed

pytestmark = pytest.mark.skipif(not installed(VERSIONS), reason="the page is about other releases")
REFUSED = {
    "albert": "shared layers",
    "funnel": "2 stacks of layers",
}


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match")  # PEFT's own, for experts
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_table_says_what_every_model_type_did(name: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    if name in REFUSED:
        with pytest.raises(LayercardError, match=REFUSED[name]) as refusal:
            tried(name, architecture, tmp_path)
        check_row(name, str(refusal.value))
    else:
        check_row(name, tried(name, architecture, tmp_path))


def test_the_page_lists_every_model_type_and_no_other() -> None:
    PAGE.check_names()
    assert len(ARCHITECTURES) >= 60
