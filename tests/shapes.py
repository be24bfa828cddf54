"""Tiny random models whose layers differ, or that hold several stacks of layers, and trainers over them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from peft import LoraConfig, get_peft_model

from tiny import VOCAB, collate, tiny_examples
from trainers import Rows, arguments

ATTENTION = ["q_proj", "v_proj"]
WIDTHS = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
TEXT = {**WIDTHS, "vocab_size": VOCAB, "num_hidden_layers": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
EIGHT = {**TEXT, "num_hidden_layers": 8}
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip


def every_fourth(other: str) -> list[str]:
    return ([other] * 3 + ["full_attention"]) * 2


def qwen3_next() -> Any:
    linear = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "mlp_only_layers": list(range(8))}
    config = hf.Qwen3NextConfig(**EIGHT, **linear, **experts, head_dim=8, layer_types=every_fourth("linear_attention"))
    return hf.Qwen3NextForCausalLM(config)


def jamba() -> Any:
    layers = {"attn_layer_period": 4, "attn_layer_offset": 3, "num_experts": 2, "num_experts_per_tok": 1}
    return hf.JambaForCausalLM(hf.JambaConfig(**EIGHT, **layers, mamba_d_state=4, mamba_dt_rank=4))


def lfm2() -> Any:
    return hf.Lfm2ForCausalLM(hf.Lfm2Config(**EIGHT, layer_types=every_fourth("conv")))


def nemotron_h() -> Any:
    mamba = {"ssm_state_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 2, "chunk_size": 8}
    return hf.NemotronHForCausalLM(hf.NemotronHConfig(**EIGHT, **mamba, head_dim=8, hybrid_override_pattern="M-M*M-M*"))


HYBRIDS: dict[str, Callable[[], Any]] = {
    "qwen3_next": qwen3_next,
    "jamba": jamba,
    "lfm2": lfm2,
    "nemotron_h": nemotron_h,
}
"""Eight layers, of which 3 and 7 hold attention."""


def llava() -> Any:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VISION),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_index=5,
        vision_feature_layer=-1,
    )
    return hf.LlavaForConditionalGeneration(config)


def qwen_vision() -> dict[str, Any]:
    return {
        "depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4,
        "spatial_merge_size": 2,
    }  # fmt: skip


def qwen2_5_vl() -> Any:
    vision = {**qwen_vision(), "window_size": 16, "fullatt_block_indexes": [1]}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    config = hf.Qwen2_5_VLConfig(vision_config=vision, text_config={**TEXT, "rope_parameters": rope})
    return hf.Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl() -> Any:
    vision = {**qwen_vision(), "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16}
    return hf.Qwen3VLForConditionalGeneration(
        hf.Qwen3VLConfig(vision_config=vision, text_config={**TEXT, "head_dim": 8})
    )


def smolvlm() -> Any:
    config = hf.SmolVLMConfig(vision_config=VISION, text_config=hf.LlamaConfig(**TEXT).to_dict(), scale_factor=1)
    return hf.SmolVLMForConditionalGeneration(config)


def gemma3() -> Any:
    config = hf.Gemma3Config(vision_config=VISION, text_config={**TEXT, "head_dim": 8}, mm_tokens_per_image=4)
    return hf.Gemma3ForConditionalGeneration(config)


VISION_LANGUAGE: dict[str, tuple[Callable[[], Any], str, str]] = {
    "llava": (llava, "language_model.layers", "model.vision_tower"),
    "qwen2_5_vl": (qwen2_5_vl, "language_model.layers", "model.visual"),
    "qwen3_vl": (qwen3_vl, "language_model.layers", "model.visual"),
    "smolvlm": (smolvlm, "text_model.layers", "model.vision_model"),
    "gemma3": (gemma3, "language_model.layers", "model.vision_tower"),
}
"""Each with the path of its language layers and of its tower."""


def t5() -> Any:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 4}
    return hf.T5ForConditionalGeneration(
        hf.T5Config(vocab_size=VOCAB, **sizes, pad_token_id=0, decoder_start_token_id=0)
    )


def speech_sizes() -> dict[str, Any]:
    return {
        "vocab_size": VOCAB, "d_model": 32, "encoder_layers": 3, "decoder_layers": 3, "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "pad_token_id": 0,
        "decoder_start_token_id": 2, "eos_token_id": 2, "bos_token_id": 1,
    }  # fmt: skip


def bart() -> Any:
    return hf.BartForConditionalGeneration(hf.BartConfig(**speech_sizes(), max_position_embeddings=64))


def whisper() -> Any:
    positions = {"max_source_positions": 8, "max_target_positions": 32, "num_mel_bins": 8}
    return hf.WhisperForConditionalGeneration(hf.WhisperConfig(**speech_sizes(), **positions))


ENCODER_DECODERS: dict[str, tuple[Callable[[], Any], list[str], dict[str, str]]] = {
    "t5": (t5, ["q", "v"], {"encoder": "encoder.block", "decoder": "decoder.block"}),
    "bart": (bart, ATTENTION, {"encoder": "encoder.layers", "decoder": "decoder.layers"}),
    "whisper": (whisper, ATTENTION, {"encoder": "encoder.layers", "decoder": "decoder.layers"}),
}
"""Each with the usual target modules and the paths of its stacks."""


def with_lora(model: Any, targets: Any, **changes: Any) -> Any:
    """Return the model with fresh adapters; the same arguments give the same values."""
    torch.manual_seed(7)
    return get_peft_model(model, LoraConfig(**({"r": 4, "target_modules": copy.deepcopy(targets)} | changes)))


def seeded(build: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return build()


def text_trainer(folder: Path, build: Callable[[], Any], targets: Any, **changes: Any) -> Any:
    """Return a plain trainer over text rows; `lora` holds changes of the configuration."""
    lora = changes.pop("lora", {})
    model = with_lora(seeded(build), targets, **lora)
    return hf.Trainer(
        model=model, args=arguments(folder, **changes), train_dataset=Rows(tiny_examples(40)), data_collator=collate
    )


def pairs(count: int) -> list[dict[str, Any]]:
    """Sources of 6 to 8 tokens with targets of 3, 5, 7 and 9."""
    return [
        {"input_ids": [3 + (i + j) % 90 for j in range(6 + i % 3)], "labels": [3 + (i * j) % 90 for j in range(n)]}
        for i, n in zip(range(count), [3, 5, 7, 9] * count, strict=False)
    ]


def collate_pairs(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    width, longest = (max(len(row[name]) for row in rows) for name in ("input_ids", "labels"))
    ids = [row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows]
    labels = [row["labels"] + [-100] * (longest - len(row["labels"])) for row in rows]
    mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
    return {name: torch.tensor(values) for name, values in zip(BATCH, (ids, mask, labels), strict=True)}


BATCH = ("input_ids", "attention_mask", "labels")


def collate_speech(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The same targets after sounds that the source's tokens seed."""
    batch = collate_pairs(rows)
    generator = torch.Generator().manual_seed(rows[0]["input_ids"][0])
    return {"input_features": torch.randn(len(rows), 8, 16, generator=generator), "labels": batch["labels"]}


def pair_trainer(folder: Path, name: str, targets: Any = None, **changes: Any) -> Any:
    """Return a sequence-to-sequence trainer over `pairs`."""
    build, usual, _ = ENCODER_DECODERS[name]
    model = with_lora(seeded(build), targets or usual)
    args = hf.Seq2SeqTrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no",
        remove_unused_columns=False, dataloader_pin_memory=False,
        **({"per_device_train_batch_size": 4, "max_steps": 4, "learning_rate": 1e-2} | changes),
    )  # fmt: skip
    return hf.Seq2SeqTrainer(
        model=model, args=args, train_dataset=Rows(pairs(40)),
        data_collator=collate_speech if name == "whisper" else collate_pairs,
    )  # fmt: skip


def adapted_modules(model: Any) -> set[str]:
    """The names, in the base model, of the modules that hold a LoRA factor."""
    return {
        name.removeprefix("base_model.model.").split(".lora_", 1)[0]
        for name, _ in model.named_parameters()
        if ".lora_" in name
    }


def trainable_in(model: Any, tower: str) -> int:
    return sum(p.requires_grad for name, p in model.named_parameters() if f".{tower}." in name)
