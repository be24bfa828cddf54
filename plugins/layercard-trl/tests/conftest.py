"""Real TRL trainers on tiny random models and datasets made on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiny import tiny_model, tiny_tokenizer
from trl_names import uses_trl

ASSISTANT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + eos_token }}{% endgeneration %}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def sums(count: int) -> list[dict[str, str]]:
    """Prompt and completion of mixed lengths, none twice."""
    return [{"prompt": f"add {i} and {i * i}: ", "completion": f"{i + i * i}{'!' * (i % 5)}"} for i in range(count)]


def chat(count: int) -> list[dict[str, Any]]:
    """Conversations of one turn."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"is {i} odd"},
                {"role": "assistant", "content": "yes" * (1 + i % 3)},
            ]
        }
        for i in range(count)
    ]


def tokenized(count: int) -> list[dict[str, list[int]]]:
    """Examples that the user prepared, the first label masked."""
    return [
        {"input_ids": [5 + i, 6, 7, 8, 9][: 3 + i % 3], "labels": [-100, 6, 7, 8, 9][: 3 + i % 3]} for i in range(count)
    ]


ROWS = {"sums": sums, "chat": chat, "tokenized": tokenized}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny Llama of four layers with its tokenizer."""
    folder = tmp_path_factory.mktemp("model") / "tiny-llama"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local folder with train.jsonl and test.jsonl."""
    folder = tmp_path_factory.mktemp("data")
    rows = sums(40)
    for name, part in (("train", rows[:32]), ("test", rows[32:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


@pytest.fixture
def sft_trainer(tmp_path: Path) -> Callable[..., Any]:
    """Build an `SFTTrainer` with LoRA on every layer; keywords go to `SFTConfig`."""

    def build(*, rows: str = "sums", count: int = 12, lora: dict[str, Any] | None = None, **settings: Any) -> Any:
        from datasets import Dataset
        from peft import LoraConfig
        from trl import SFTConfig, SFTTrainer

        tokenizer = tiny_tokenizer()
        if settings.get("assistant_only_loss"):
            tokenizer.chat_template = ASSISTANT_TEMPLATE
        config = {"max_length": 40, "bf16": False, "per_device_train_batch_size": 3, **settings}
        return SFTTrainer(
            tiny_model("llama"),
            args=SFTConfig(output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none", **config),
            train_dataset=Dataset.from_list(ROWS[rows](count)),
            processing_class=tokenizer,
            peft_config=LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "target_modules": "all-linear", **(lora or {})}),
        )

    return build


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Excuse TRL's own use of old names in the tests of this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(uses_trl)
