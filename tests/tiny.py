"""Tiny random models of every supported family, a tokenizer, and batches: made from their config classes, offline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

VOCAB = 120
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GQA = {**SMALL, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}

CAUSAL: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "llama": lambda: hf.LlamaConfig(**GQA),
    "qwen2": lambda: hf.Qwen2Config(**GQA),
    "qwen3": lambda: hf.Qwen3Config(**GQA, head_dim=8),
    "mistral": lambda: hf.MistralConfig(**GQA, sliding_window=None),
    "gemma2": lambda: hf.Gemma2Config(**GQA, head_dim=8),
    "gemma3": lambda: hf.Gemma3TextConfig(**GQA, head_dim=8),
    "phi3": lambda: hf.Phi3Config(**GQA),
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=4,
        n_head=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
    "opt": lambda: hf.OPTConfig(**{**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32}, bos_token_id=1, eos_token_id=2),
}
ENCODERS: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "bert": lambda: hf.BertConfig(**SMALL),
    "deberta": lambda: hf.DebertaV2Config(
        **SMALL,
        relative_attention=True,
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        max_relative_positions=16,
        norm_rel_ebd="layer_norm",
    ),
    "modernbert": lambda: hf.ModernBertConfig(
        **SMALL,
        global_attn_every_n_layers=2,
        local_attention=16,
        cls_token_id=1,
        sep_token_id=2,
    ),
}
FAMILIES = [*CAUSAL, *ENCODERS]


def tiny_model(
    family: str, *, num_layers: int = 4, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any
) -> Any:
    """Return a random model: with a language modelling head, or for encoders with a classifier of three labels."""
    config = (CAUSAL | ENCODERS)[family]()
    setattr(config, "n_layer" if family == "gpt2" else "num_hidden_layers", num_layers)
    if getattr(config, "layer_types", None):  # derived from the depth when it was four
        config.layer_types = (list(config.layer_types) * num_layers)[:num_layers]
    for name, value in changes.items():
        setattr(config, name, value)
    config._attn_implementation = changes.get(
        "attn_implementation", "eager" if family in {"deberta", "gemma2"} else "sdpa"
    )
    torch.manual_seed(seed)
    if family in CAUSAL:
        model = hf.AutoModelForCausalLM.from_config(config)
    else:
        config.num_labels = 3
        model = hf.AutoModelForSequenceClassification.from_config(config)
    for parameter in model.parameters():  # random biases and norms too, so that nothing is zero by construction
        if parameter.dim() == 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype)


def tiny_examples(
    count: int, *, seed: int = 0, low: int = 5, high: int = 12, encoder: bool = False
) -> list[dict[str, Any]]:
    """Return tokenized examples of mixed lengths; the first two labels are masked, encoders get one label."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for _ in range(count):
        length = int(torch.randint(low, high + 1, (1,), generator=generator))
        ids = torch.randint(3, VOCAB, (length,), generator=generator).tolist()
        label = int(torch.randint(0, 3, (1,), generator=generator))
        examples.append({"input_ids": ids, "labels": label if encoder else [-100, -100, *ids[2:]]})
    return examples


def collate(examples: list[dict[str, Any]], *, side: str = "right", extra: int = 0) -> dict[str, torch.Tensor]:
    """Pad to the longest example plus `extra`, on the `side` asked for."""
    width = max(len(e["input_ids"]) for e in examples) + extra
    rows: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for example in examples:
        ids, labels = example["input_ids"], example["labels"]
        pad = width - len(ids)
        padded = {"input_ids": (ids, 0), "attention_mask": ([1] * len(ids), 0)}
        if isinstance(labels, list):
            padded["labels"] = (labels, -100)
        else:
            rows["labels"].append(labels)
        for name, (values, fill) in padded.items():
            rows[name].append([*values, *[fill] * pad] if side == "right" else [*[fill] * pad, *values])
    return {name: torch.tensor(values) for name, values in rows.items()}


def pack(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return one packed row: documents end to end, `position_ids` restarting, the first label of each masked."""
    ids, labels, positions = [], [], []
    for example in examples:
        ids += example["input_ids"]
        labels += [-100, *example["labels"][1:]]
        positions += range(len(example["input_ids"]))
    return {
        name: torch.tensor([row]) for name, row in (("input_ids", ids), ("labels", labels), ("position_ids", positions))
    }


def tiny_tokenizer() -> hf.PreTrainedTokenizerFast:
    """Return a character tokenizer with a chat template, small enough for `tiny_model`."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    characters = [chr(i) for i in range(32, 127)]
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    vocabulary = {token: i for i, token in enumerate([*special, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    fast.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    return fast
