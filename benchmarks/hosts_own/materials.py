"""What the hosts' tests name on the hub, made offline: small random models, a byte tokenizer, and rows that we wrote.

Everything is put in folders of the same names below one folder. Tests that run there find `trl-internal-testing/zen` as a
path, so that neither hosts nor tests are changed. Shapes are those of the tiny models meant, but for the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
import trl
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar as disable_progress_bars
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PAD, BOS, EOS = 0, 1, 2
SHAPE: dict[str, Any] = {
    "vocab_size": 256 + len(SPECIAL), "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 2, "intermediate_size": 32, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS,
}  # fmt: skip
WIDTH = 128
OPT: dict[str, Any] = {
    "vocab_size": 256 + len(SPECIAL), "num_attention_heads": 4, "num_hidden_layers": 5,
    "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS,
}  # fmt: skip
EXPERTS: dict[str, Any] = {**SHAPE, "num_experts_per_tok": 2}

MODELS: dict[str, tuple[Callable[[], hf.PreTrainedConfig], str]] = {
    "trl-internal-testing/tiny-Qwen2ForCausalLM-2.5": (lambda: hf.Qwen2Config(**SHAPE), "qwen2_5"),
    "trl-internal-testing/tiny-Qwen3ForCausalLM": (lambda: hf.Qwen3Config(**SHAPE, head_dim=8), "qwen3"),
    "trl-internal-testing/tiny-Qwen3MoeForCausalLM": (
        lambda: hf.Qwen3MoeConfig(**EXPERTS, num_experts=4, moe_intermediate_size=32, head_dim=8),
        "qwen3",
    ),
    "trl-internal-testing/tiny-GptOssForCausalLM": (
        lambda: hf.GptOssConfig(**EXPERTS, num_local_experts=4, head_dim=8),
        "qwen2_5",
    ),
    "trl-internal-testing/tiny-LlamaForCausalLM-3.2": (lambda: hf.LlamaConfig(**SHAPE), "qwen2_5"),
    "trl-internal-testing/tiny-MistralForCausalLM-0.2": (lambda: hf.MistralConfig(**SHAPE), "qwen2_5"),
    "trl-internal-testing/tiny-Cohere2ForCausalLM": (lambda: hf.Cohere2Config(**SHAPE, logit_scale=1.0), "qwen2_5"),
    "trl-internal-testing/tiny-Olmo3ForCausalLM": (lambda: hf.Olmo3Config(**SHAPE), "qwen2_5"),
    "trl-internal-testing/tiny-Glm4MoeForCausalLM": (
        lambda: hf.Glm4MoeConfig(**EXPERTS, n_routed_experts=4, moe_intermediate_size=32, head_dim=2),
        "qwen2_5",
    ),
    "trl-internal-testing/tiny-Lfm2ForCausalLM": (
        lambda: hf.Lfm2Config(**SHAPE, full_attn_idxs=[1], block_multiple_of=8),
        "qwen2_5",
    ),
    "peft-internal-testing/tiny-random-OPTForCausalLM": (
        lambda: hf.OPTConfig(**OPT, hidden_size=16, word_embed_proj_dim=16, ffn_dim=32, max_position_embeddings=WIDTH),
        "qwen2_5",
    ),
}
"""Each model's configuration, and the chat template of TRL's that its tokenizer gets."""

WORDS = (
    "rain",
    "fell",
    "on",
    "the",
    "old",
    "tin",
    "roof",
    "while",
    "seven",
    "small",
    "boats",
    "came",
    "home",
    "before",
    "night",
)
ROWS, TEST_ROWS = 19, 2


def tokenizer(template: str) -> hf.PreTrainedTokenizerFast:
    """Return a tokenizer of single bytes that decodes to what was encoded."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({token: i for i, token in enumerate([*SPECIAL, *letters])}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(SPECIAL))
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=SPECIAL[PAD], eos_token=SPECIAL[EOS], additional_special_tokens=[SPECIAL[BOS]]
    )
    folder = Path(trl.__file__).parent / "chat_templates"
    fast.chat_template = (folder / f"{template}.jinja").read_text(encoding="utf-8")
    return fast


def sentence(number: int, length: int = 4) -> str:
    """Return a few words, others for every number."""
    return " ".join(WORDS[(number * 3 + i * (1 + number % 4)) % len(WORDS)] for i in range(length)).capitalize() + "."


def rows() -> dict[str, dict[str, list[Any]]]:
    """Return the columns of every configuration of the data set by its name."""
    asked = [f"{sentence(i)[:-1]}?" for i in range(ROWS)]
    good, bad = [sentence(i + 1) for i in range(ROWS)], [sentence(i + 2) for i in range(ROWS)]
    users, goods, bads = ([_turn(role, text) for text in texts] for role, texts in
                          (("user", asked), ("assistant", good), ("assistant", bad)))  # fmt: skip
    return {
        "standard_language_modeling": {"text": [f"{a} {b}" for a, b in zip(asked, good, strict=True)]},
        "standard_prompt_completion": {"prompt": asked, "completion": good},
        "standard_preference": {"prompt": asked, "chosen": good, "rejected": bad},
        "standard_implicit_prompt_preference": {
            "chosen": [f"{a} {b}" for a, b in zip(asked, good, strict=True)],
            "rejected": [f"{a} {b}" for a, b in zip(asked, bad, strict=True)],
        },
        "standard_unpaired_preference": {
            "prompt": asked,
            "completion": good,
            "label": [i % 2 == 0 for i in range(ROWS)],
        },
        "conversational_language_modeling": {"messages": [[*a, *b] for a, b in zip(users, goods, strict=True)]},
        "conversational_prompt_completion": {"prompt": users, "completion": goods},
        "conversational_preference": {"prompt": users, "chosen": goods, "rejected": bads},
        "conversational_implicit_prompt_preference": {
            "chosen": [[*a, *b] for a, b in zip(users, goods, strict=True)],
            "rejected": [[*a, *b] for a, b in zip(users, bads, strict=True)],
        },
    }


def _turn(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def quotes() -> dict[str, list[Any]]:
    """Return the columns of the rows that PEFT's tests train on."""
    return {
        "quote": [sentence(i) for i in range(ROWS)],
        "author": [sentence(i, 1) for i in range(ROWS)],
        "tags": [["rain"] for _ in range(ROWS)],
    }


def make_data(folder: Path, configurations: dict[str, dict[str, list[Any]]]) -> None:
    """Write a data set as a folder that `load_dataset` reads, with its configurations."""
    lines = ["---", "configs:"]
    for name, columns in configurations.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        whole = Dataset.from_dict(columns).train_test_split(test_size=TEST_ROWS, shuffle=False)
        for split, part in whole.items():
            path = folder / name / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            part.to_parquet(path)
            lines += [f"  - split: {split}", f"    path: {name}/{split}.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")


def make_model(folder: Path, config: hf.PreTrainedConfig, template: str) -> None:
    """Write a random model and its tokenizer, weights initialised as TRL's tiny models are."""
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=0.02)
    model.save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)


def make_all(folder: Path, names: list[str] | None = None) -> None:
    """Make the data sets and the models, or those that are named, below the folder."""
    disable_progress_bars()
    hf.utils.logging.disable_progress_bar()
    make_data(folder / "trl-internal-testing" / "zen", rows())
    make_data(folder / "ybelkada" / "english_quotes_copy", {"default": quotes()})
    for name in MODELS if names is None else names:
        config, template = MODELS[name]
        make_model(folder / name, config(), template)
