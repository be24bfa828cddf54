"""docs/data-forms.md, TRL's part: every form of rows in real trainers, placed by a score that reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from forms_table import WORKS, check_section, reason, rows_of, section
from layercard import place
from layercard.errors import LayercardError
from tiny import tiny_model, tiny_tokenizer

USER, ASSISTANT, OTHER = (
    {"role": r, "content": c} for r, c in (("user", "hi"), ("assistant", "ho"), ("assistant", "x"))
)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
FORMS: dict[str, Callable[[int], dict[str, Any]]] = {
    "`text`": lambda i: {"text": f"text {i}"},
    "`prompt`, `completion`": lambda i: {"prompt": f"prompt {i}", "completion": "done"},
    "`prompt`, `completion` as messages": lambda i: {"prompt": [USER], "completion": [ASSISTANT]},
    "`messages`": lambda i: {"messages": [USER, ASSISTANT]},
    "`messages`, `tools`": lambda i: {"messages": [USER, ASSISTANT], "tools": [TOOL]},
    "`messages`, `chat_template_kwargs`": lambda i: {
        "messages": [USER, ASSISTANT],
        "chat_template_kwargs": {"thinking": False},
    },
    "`conversations` (`from`, `value`)": lambda i: {"conversations": [{"from": "user", "value": "hi"}]},
    "`messages`, `images`": lambda i: {"messages": [USER, ASSISTANT], "images": ["cat.png"]},
    "`input_ids`, `labels`": lambda i: {"input_ids": [5, 6, 7 + i], "labels": [-100, 6, 7 + i]},
    "`prompt`, `chosen`, `rejected`": lambda i: {"prompt": "a", "chosen": "b", "rejected": "c"},
    "`prompt`, `chosen`, `rejected` as messages": lambda i: {
        "prompt": [USER],
        "chosen": [ASSISTANT],
        "rejected": [OTHER],
    },
    "`chosen`, `rejected` with the prompt in both": lambda i: {"chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]},
}
TRAINERS: dict[str, tuple[Any, Any]] = {"SFTTrainer": (SFTTrainer, SFTConfig), "DPOTrainer": (DPOTrainer, DPOConfig)}
REFUSED = "TRL's trainer does not take such rows"


def outcome(name: str, row: Callable[[int], dict[str, Any]], folder: Path) -> str:
    kind, config = TRAINERS[name]
    args = config(output_dir=str(folder / "out"), use_cpu=True, bf16=False, report_to="none", max_length=64)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
    dataset = Dataset.from_list([row(i) for i in range(4)])
    try:
        trainer = kind(
            tiny_model("llama"), args=args, train_dataset=dataset, processing_class=tiny_tokenizer(), peft_config=lora
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return REFUSED
    try:
        place(trainer, lora_layers="high")
    except LayercardError as error:
        return reason(str(error))
    return WORKS


def test_the_table_says_what_trl_and_layercard_take(tmp_path: Path) -> None:
    outcomes = rows_of(list(FORMS))
    for name in TRAINERS:
        for number, (form, row) in enumerate(FORMS.items()):
            outcomes[form][name] = outcome(name, row, tmp_path / f"{name}{number}")
    check_section("TRL's trainers", section("TRL's trainers", "rows", outcomes))
