"""docs/peft.md: every way to adapt a model is probed, placed, trained and reloaded, or refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import rows
from environments import installed_apart, run_apart
from peft import PeftModel
from peft_cases import CASES, GPTQ, LAYERS, TORCHAO
from peft_page import PAGE, VERSIONS, check_refusal, check_row
from peft_stages import Outcome, tried
from refused_cases import REFUSED
from transformers import Trainer

from adapted import assert_same, fingerprint
from layercard import place
from layercard.errors import ModelError
from table_page import installed
from trainers import Rows, arguments

pytestmark = [
    pytest.mark.skipif(not installed(VERSIONS), reason="the page is about other releases"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),  # says that it casts float32 to float16
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`"),  # PEFT, of adapted embeddings
    pytest.mark.filterwarnings("ignore:Adapter 'default'.*invalid shape"),  # PEFT takes `lora_bias` for shards
]


LONG = "LAYERCARD_LONG"
BESIDE_GPTQ = (
    "device-smi==0.5.7", "pypcre==0.6.4", "tokenicer==0.0.14", "logbar==0.4.15", "defuser==0.0.28", "optimum==2.3.0",
    "threadpoolctl==3.8.0",
)  # fmt: skip
"""What GPTQModel imports and layercard's own environment does not have."""


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.packages])
def test_the_table_says_what_every_adapter_did(name: str, tmp_path: Path) -> None:
    check_row(name, tried(CASES[name], tmp_path))


@pytest.fixture(scope="module")
def torchao(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torchao, in a folder of its own."""
    return installed_apart(TORCHAO, tmp_path_factory.mktemp("torchao"))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.packages == TORCHAO])
def test_the_table_says_what_torchao_did(name: str, torchao: Path, tmp_path: Path) -> None:
    run_apart("try_case.py", [str(tmp_path), name], torchao)
    check_row(name, Outcome(**json.loads((tmp_path / "outcome.json").read_text(encoding="utf-8"))))


@pytest.mark.skipif(LONG not in os.environ, reason=f"GPTQModel is built and installed for minutes; {LONG}=1 does")
def test_the_table_says_what_gptq_did(tmp_path: Path) -> None:
    packages = installed_apart([*TORCHAO, *BESIDE_GPTQ], tmp_path / "packages")
    installed_apart(GPTQ, packages, "--no-build-isolation")
    run_apart("try_case.py", [str(tmp_path), "GPTQ"], packages)
    check_row("GPTQ", Outcome(**json.loads((tmp_path / "outcome.json").read_text(encoding="utf-8"))))


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # PEFT's own LoRA-GA preparation
@pytest.mark.filterwarnings("ignore:`init_lora_weights` is 'eva' but")
@pytest.mark.filterwarnings("ignore:lora with eva initialization used with low_cpu_mem_usage=False")
def test_the_table_says_what_is_refused_and_the_model_stays_as_it_was(name: str, tmp_path: Path) -> None:
    model = REFUSED[name].make()
    data = Rows(rows.TEXT.examples(2))
    trainer = Trainer(model=model, args=arguments(tmp_path), train_dataset=data, data_collator=rows.TEXT.collate)
    before = found(model)
    with pytest.raises(ModelError, match=REFUSED[name].message) as refusal:
        place(trainer, lora_layers=list(LAYERS))
    assert_same(before, found(model))
    check_refusal(name, str(refusal.value))


def found(model: Any) -> dict[str, Any]:
    """All that narrowing may touch; of a model without adapters its values."""
    if isinstance(model, PeftModel):
        return fingerprint(model)
    return dict.fromkeys(("modules", "parameters", "config", "targets")) | {"values": dict(model.state_dict())}


def test_the_page_lists_every_adapter_and_no_other() -> None:
    PAGE.check_names()
