"""docs/peft.md: every way to adapt a model is probed, placed, trained and reloaded, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft_cases import CASES
from peft_page import PAGE, VERSIONS, check_row
from peft_stages import tried

from table_page import installed

pytestmark = [
    pytest.mark.skipif(not installed(VERSIONS), reason="the page is about other releases"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),  # says that it casts float32 to float16
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`"),  # PEFT, of adapted embeddings
    pytest.mark.filterwarnings("ignore:Adapter 'default'.*invalid shape"),  # PEFT takes `lora_bias` for shards
]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.packages])
def test_the_table_says_what_every_adapter_did(name: str, tmp_path: Path) -> None:
    check_row(name, tried(CASES[name], tmp_path))


def test_the_page_lists_every_adapter_and_no_other() -> None:
    PAGE.check_names()
