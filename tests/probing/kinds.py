"""Tiny models of every kind of label, and the same examples collated alone, or together with any padding.

A kind's `rows(examples, width, side)` is what a collator gives; `alone` is one example without padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers as hf
from peft import LoraConfig, PeftModel, get_peft_model

from tiny import GQA, SMALL, VOCAB

LAYERS = 2
LABELS = 6
ENCODER = {**SMALL, "num_hidden_layers": LAYERS}
Batch = dict[str, torch.Tensor]
Example = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """One kind of labels: how to make the model, an example, and a batch."""

    model: Callable[[], Any]
    targets: list[str]
    example: Callable[[torch.Generator, int], Example]
    """Of a length."""
    stack: str | None = None
    relative: bool = False
    """Whether padding on the left moves no position."""


def ids(generator: torch.Generator, length: int) -> list[int]:
    return torch.randint(3, VOCAB, (length,), generator=generator).tolist()


def number(generator: torch.Generator, high: int) -> int:
    return int(torch.randint(0, high, (1,), generator=generator))


def causal(generator: torch.Generator, length: int) -> Example:
    tokens = ids(generator, length)
    return {"input_ids": tokens, "token_labels": [-100, *tokens[1:]]}


def spoken(generator: torch.Generator, length: int) -> Example:
    tokens = ids(generator, length)
    return {"input_ids": tokens, "token_labels": tokens}


def hidden(generator: torch.Generator, length: int) -> Example:
    tokens = ids(generator, length)
    return {"input_ids": tokens, "token_labels": [t if i % 3 == 0 else -100 for i, t in enumerate(tokens)]}


def tagged(generator: torch.Generator, length: int) -> Example:
    return {
        "input_ids": ids(generator, length),
        "token_labels": [number(generator, LABELS) for _ in range(length - 1)] + [-100],
    }


def classified(generator: torch.Generator, length: int) -> Example:
    return {"input_ids": ids(generator, length), "labels": number(generator, LABELS)}


def measured(generator: torch.Generator, length: int) -> Example:
    return {"input_ids": ids(generator, length), "labels": float(torch.randn((), generator=generator))}


def several(generator: torch.Generator, length: int) -> Example:
    values = torch.randint(0, 2, (LABELS,), generator=generator).float()
    return {"input_ids": ids(generator, length), "labels": values.tolist()}


def answered(generator: torch.Generator, length: int) -> Example:
    start = number(generator, length)
    return {"input_ids": ids(generator, length), "start_positions": start, "end_positions": length - 1}


def chosen(generator: torch.Generator, length: int) -> Example:
    texts = [ids(generator, max(1, length - 2 * i)) for i in range(3)]
    return {"choices": texts, "labels": number(generator, 3)}


def translated(generator: torch.Generator, length: int) -> Example:
    return {"input_ids": ids(generator, length), "target": ids(generator, 1 + number(generator, 7))}


def heard(generator: torch.Generator, length: int) -> Example:
    return {"sound": torch.randn(4, 16, generator=generator), "target": ids(generator, 1 + number(generator, 7))}


def seen(generator: torch.Generator, length: int) -> Example:
    return {"image": torch.randn(3, 8, 8, generator=generator), "labels": number(generator, LABELS)}


def bert(head: str, **changes: Any) -> Callable[[], Any]:
    return lambda: getattr(hf, head)(hf.BertConfig(**{**ENCODER, "num_labels": LABELS, **changes}))


def t5() -> Any:
    return hf.T5ForConditionalGeneration(
        hf.T5Config(
            vocab_size=VOCAB, d_model=16, d_kv=4, d_ff=24, num_layers=LAYERS, num_decoder_layers=LAYERS, num_heads=4,
            decoder_start_token_id=0, pad_token_id=0,
        )
    )  # fmt: skip


BARTS: dict[str, Any] = {
    "vocab_size": VOCAB, "d_model": 16, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": 2,
}  # fmt: skip


def bart(family: str) -> Callable[[], Any]:
    return lambda: getattr(hf, f"{family}ForConditionalGeneration")(getattr(hf, f"{family}Config")(**BARTS))


def whisper() -> Any:
    config = {k: v for k, v in BARTS.items() if k not in {"max_position_embeddings", "forced_eos_token_id"}}
    noise = {"apply_spec_augment": True, "mask_time_prob": 0.5, "mask_time_length": 2}
    sizes = {"num_mel_bins": 4, "max_source_positions": 8, "max_target_positions": 32}
    return hf.WhisperForConditionalGeneration(hf.WhisperConfig(**config, **sizes, **noise, suppress_tokens=None))


def vit() -> Any:
    return hf.ViTForImageClassification(
        hf.ViTConfig(hidden_size=16, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=24, image_size=8,
                     patch_size=4, num_labels=LABELS)
    )  # fmt: skip


def llama(head: str) -> Callable[[], Any]:
    return lambda: getattr(hf, head)(hf.LlamaConfig(**{**GQA, "num_hidden_layers": LAYERS}, num_labels=LABELS))


BERT = ["query", "value", "intermediate.dense"]
LLAMA = ["q_proj", "v_proj", "down_proj"]
BART = ["q_proj", "k_proj", "v_proj", "fc1"]
T5 = ["q", "k", "v", "wi"]
KINDS: dict[str, Kind] = {
    "causal": Kind(llama("LlamaForCausalLM"), LLAMA, causal, relative=True),
    "causal, every token": Kind(llama("LlamaForCausalLM"), LLAMA, spoken, relative=True),
    "classifier on a decoder": Kind(llama("LlamaForSequenceClassification"), LLAMA, classified, relative=True),
    "masked": Kind(bert("BertForMaskedLM"), BERT, hidden),
    "token classification": Kind(bert("BertForTokenClassification"), BERT, tagged),
    "classification": Kind(bert("BertForSequenceClassification"), BERT, classified),
    "regression": Kind(bert("BertForSequenceClassification", num_labels=1), BERT, measured),
    "several regressions": Kind(bert("BertForSequenceClassification", problem_type="regression"), BERT, several),
    "multi-label": Kind(bert("BertForSequenceClassification", problem_type="multi_label_classification"), BERT, several),
    "question answering": Kind(bert("BertForQuestionAnswering", num_labels=2), BERT, answered),
    "answers of a decoder": Kind(llama("LlamaForQuestionAnswering"), LLAMA, answered, relative=True),
    "multiple choice": Kind(bert("BertForMultipleChoice"), BERT, chosen),
    "T5 decoder": Kind(t5, T5, translated, "decoder.block", relative=True),
    "T5 encoder": Kind(t5, T5, translated, "encoder.block", relative=True),
    "BART decoder": Kind(bart("Bart"), BART, translated, "decoder.layers"),
    "BART encoder": Kind(bart("Bart"), BART, translated, "encoder.layers"),
    "mBART decoder": Kind(bart("MBart"), BART, translated, "decoder.layers"),
    "Pegasus decoder": Kind(bart("Pegasus"), BART, translated, "decoder.layers"),
    "Whisper decoder": Kind(whisper, BART, heard, "decoder.layers"),
    "Whisper encoder": Kind(whisper, BART, heard, "encoder.layers"),
    "image classification": Kind(vit, ["q_proj", "v_proj", "fc1"], seen),
}  # fmt: skip


def build(kind: Kind) -> PeftModel:
    """Return the kind's model with LoRA on its targets, the same every time."""
    torch.manual_seed(0)
    model = kind.model()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return get_peft_model(model, LoraConfig(r=3, target_modules=kind.targets))


def rows(examples: list[Example], *, extra: int = 0, target_extra: int = 0, side: str = "right") -> Batch:
    """Return the examples as one batch, as wide as the longest and `extra` more, padded on `side`."""
    batch: Batch = {}
    if "input_ids" in examples[0]:
        width = max(len(e["input_ids"]) for e in examples) + extra
        batch["input_ids"] = torch.tensor([_pad(e["input_ids"], width, 0, side) for e in examples])
        batch["attention_mask"] = torch.tensor([_pad([1] * len(e["input_ids"]), width, 0, side) for e in examples])
        if "token_labels" in examples[0]:
            batch["labels"] = torch.tensor([_pad(e["token_labels"], width, -100, side) for e in examples])
        for name in {"start_positions", "end_positions"} & examples[0].keys():
            before = [width - len(e["input_ids"]) if side == "left" else 0 for e in examples]
            batch[name] = torch.tensor([e[name] + n for e, n in zip(examples, before, strict=True)])
    if "choices" in examples[0]:
        width = max(len(text) for e in examples for text in e["choices"]) + extra
        batch["input_ids"] = torch.tensor([[_pad(t, width, 0, side) for t in e["choices"]] for e in examples])
        ones = [[_pad([1] * len(t), width, 0, side) for t in e["choices"]] for e in examples]
        batch["attention_mask"] = torch.tensor(ones)
    if "target" in examples[0]:
        width = max(len(e["target"]) for e in examples) + target_extra
        batch["labels"] = torch.tensor([_pad(e["target"], width, -100, "right") for e in examples])
    for name, key in (("sound", "input_features"), ("image", "pixel_values")):
        if name in examples[0]:
            batch[key] = torch.stack([e[name] for e in examples])
    if "labels" in examples[0]:
        batch["labels"] = torch.tensor([e["labels"] for e in examples])
    return batch


def _pad(values: list[int], width: int, fill: int, side: str) -> list[int]:
    padding = [fill] * (width - len(values))
    return [*values, *padding] if side == "right" else [*padding, *values]


def oracle(model: PeftModel, singles: list[Batch], layers: tuple[torch.nn.Module, ...]) -> np.ndarray:
    """Return resnorm of each layer from `loss.backward()` on one example at a time, through the adapters themselves."""
    sites = [
        (index, module) for index, layer in enumerate(layers) for module in layer.modules() if hasattr(module, "lora_B")
    ]
    norms = np.zeros(len(layers))
    energy = np.zeros((len(sites), 2))
    model.eval()
    for single in singles:
        caught: list[Any] = []
        hooks = [
            m.register_forward_pre_hook(lambda m, args, c=caught, i=i: c.append((i, args[0].detach())))
            for i, (_, m) in enumerate(sites)
        ]
        model.zero_grad()
        model(**single).loss.backward()
        for hook in hooks:
            hook.remove()
        squares = np.zeros(len(layers))
        for index, module in sites:
            gradient = module.lora_B["default"].weight.grad
            squares[index] += (
                0.0 if gradient is None else float((gradient / module.scaling["default"]).double().square().sum())
            )
        norms += np.sqrt(squares)
        real = (
            single["attention_mask"].bool().flatten(0, 1)
            if single.get("attention_mask", torch.ones(1)).dim() == 3
            else None
        )
        for site, x in caught:
            tokens = x.double()[real] if real is not None else x.double().flatten(0, -2)
            energy[site] += float(tokens.square().sum()) / x.shape[-1], len(tokens)
    model.zero_grad()
    pooled = [
        np.mean([e / n for (at, _), (e, n) in zip(sites, energy, strict=True) if at == i]) for i in range(len(layers))
    ]
    return norms / len(singles) / np.sqrt(pooled)
