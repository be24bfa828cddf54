"""Tiny models of many model types: what to change of the common sizes, and what to know of their modules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import rows

from tiny import VOCAB

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 4, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "sliding_window": 4, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64, "ffn_dim": 48,
    "word_embed_proj_dim": 32, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "n_shared_experts": 1, "first_k_dense_replace": 1,
    "n_group": 1, "topk_group": 1, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 8, "index_head_dim": 8, "index_n_heads": 2, "index_topk": 4, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "mamba_d_state": 4,
    "mamba_dt_rank": 4, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_chunk_size": 8, "mamba_n_groups": 1,
}  # fmt: skip
"""Used where the model type's configuration has a field of the name."""
PAIR: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_start_token_id": 2,
}  # fmt: skip
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 4, "num_decoder_layers": 4, "num_heads": 4,
      "decoder_start_token_id": 0}  # fmt: skip
LATENT = {"num_key_value_heads": 4, "head_dim": 4}
TEXT = {n: SIZES[n] for n in (
    "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers",
    "pad_token_id", "bos_token_id", "eos_token_id",
)}  # fmt: skip
HEADED = {**TEXT, "head_dim": 8}
MULTIMODAL_ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
CLIP = {**VISION, "model_type": "clip_vision_model"}
SIGLIP = {**VISION, "model_type": "siglip_vision_model"}
QWEN_VISION = {
    "depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4,
    "spatial_merge_size": 2,
}  # fmt: skip
LISTENING = {
    "d_model": 16, "hidden_size": 16, "encoder_layers": 2, "num_hidden_layers": 2, "encoder_attention_heads": 2,
    "num_attention_heads": 2, "encoder_ffn_dim": 32, "intermediate_size": 64, "num_mel_bins": 8,
    "max_source_positions": 8, "head_dim": 8,
}  # fmt: skip
WAVES = {
    "conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2,
    "num_conv_pos_embedding_groups": 2, "num_conv_pos_embeddings": 4, "num_labels": 3, "apply_spec_augment": False,
    "classifier_proj_size": 16, "feat_extract_norm": "layer",
}  # fmt: skip
PICTURE = {"image_size": 8, "patch_size": 4, "num_labels": 3}
IMAGE_TOKEN = VOCAB - 1


@dataclass(frozen=True)
class Architecture:
    """One model type: its kind, the auto class of its head, changes of the common sizes, and what to know of its modules."""

    kind: str
    head: str
    rows: rows.Kind
    changes: dict[str, Any] = field(default_factory=dict)
    path: str | None = None
    """`layers_path`, where there are several stacks."""
    left_alone: str | None = None
    """A regular expression of linear modules that get no adapters: they lie beside the stack, or PEFT cannot wrap them."""
    targets: Any = "all-linear"
    layers: tuple[int, ...] = (2, 3)


ARCHITECTURES: dict[str, Architecture] = {}


def _decoders(kind: str, names: str = "", **changed: dict[str, Any]) -> None:
    """Model types with a language modelling head; keywords hold changes, underscores for hyphens."""
    for name in [*names.split(), *changed]:
        changes = dict(changed.get(name, {}))
        more = {key: changes.pop(key) for key in ("path", "left_alone", "targets", "layers") if key in changes}
        ARCHITECTURES[name] = Architecture(kind, "AutoModelForCausalLM", rows.TEXT, changes, **more)


def _others(kind: str, head: str, read: rows.Kind, types: dict[str, dict[str, Any]], **common: Any) -> None:
    for name, changes in types.items():
        own = dict(changes)
        more = common | {key: own.pop(key) for key in ("path", "left_alone", "targets", "read") if key in own}
        ARCHITECTURES[name] = Architecture(kind, f"AutoModelFor{head}", more.pop("read", read), own, **more)


_decoders(
    "dense",
    "llama mistral qwen2 qwen3 phi phi3 gemma gemma2 gemma3_text stablelm olmo2 starcoder2 granite glm4 smollm3 nemotron "
    "cohere cohere2 exaone4 bitnet diffllama",
    **{"modernbert-decoder": {"left_alone": "lm_head"}},
    gemma3n_text={
        "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 0, "laurel_rank": 4,
        "vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8, "intermediate_size": [48] * 4,
        "activation_sparsity_pattern": [0.0] * 4, "left_alone": "altup|per_layer_model_projection",
    },
    gemma4_text={
        "vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0,
        "left_alone": "per_layer_model_projection",
    },
)  # fmt: skip
_decoders(
    "older decoders", "gpt_neox falcon gpt2 gpt_bigcode openai-gpt bloom mpt opt", gptj={"rotary_dim": 4},
    gpt_neo={"num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]], "window_size": 4},
)  # fmt: skip
_decoders(
    "latent attention", deepseek_v2=LATENT, deepseek_v3=LATENT, deepseek_v32=LATENT, minicpm3=LATENT,
    glm4_moe_lite=LATENT, glm_moe_dsa=LATENT,
)  # fmt: skip
_decoders(
    "mixture of experts",
    "mixtral qwen2_moe qwen3_moe olmoe granitemoe glm4_moe ernie4_5_moe gpt_oss hunyuan_v1_moe minimax",
    phimoe={"left_alone": "router"}, llama4_text={"left_alone": "router"}, laguna={"left_alone": "shared_experts"},
)  # fmt: skip
_decoders(
    "hybrid", "qwen3_next qwen3_5_text recurrent_gemma lfm2 rwkv xlstm",
    jamba={"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1},
    bamba={"attn_layer_indices": [1, 3]},
    zamba={
        "num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 2, "attention_head_dim": 16,
        "attention_hidden_size": 64, "n_mamba_heads": 2, "layers": (4, 5),
    },
    zamba2={
        "num_hidden_layers": 6, "layer_types": ["mamba", "hybrid"] * 3, "mamba_headdim": 16, "n_mamba_heads": 4,
        "mamba_ngroups": 1, "mamba_d_state": 8, "chunk_size": 8, "num_mem_blocks": 1,
        "hybrid_layer_ids": [1, 3, 5], "attention_head_dim": 16,
        "layers": (4, 5),
    },
    granitemoehybrid={"layer_types": ["mamba", "attention"] * 2, "shared_intermediate_size": 16},
    nemotron_h={
        "hybrid_override_pattern": "M-M*", "ssm_state_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 2,
        "chunk_size": 8, "targets": ["in_proj", "q_proj", "v_proj", "up_proj"],
    },
    falcon_h1={"mamba_d_ssm": 32, "mamba_d_head": 8, "targets": ["in_proj", "q_proj", "v_proj", "up_proj"]},
    mamba={"targets": ["in_proj", "x_proj"]},
    mamba2={
        "num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 2, "chunk_size": 8, "targets": ["in_proj"],
    },
)  # fmt: skip
_decoders("looped", "dory", hrm_text={"path": "L_module.layers"})
_others(
    "encoder", "SequenceClassification", rows.CLASSES,
    {
        "bert": {"left_alone": "pooler"}, "roberta": {}, "electra": {"embedding_size": 32}, "mpnet": {}, "roformer": {},
        "deberta": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 16,
                    "left_alone": "pooler"},
        "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8,
                       "left_alone": "pooler"},
        "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 16, "cls_token_id": 1, "sep_token_id": 2,
                       "left_alone": "head"},
        "esm": {"position_embedding_type": "rotary", "mask_token_id": 4, "left_alone": "contact_head"},
        "distilbert": {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 48, "left_alone": "pre_classifier"},
        "longformer": {"attention_window": [8] * 4},
        "xlnet": {"d_model": 32, "n_layer": 4, "n_head": 4, "d_inner": 48, "d_head": 8,
                  "left_alone": "sequence_summary|logits_proj"},
        "nystromformer": {},
        "convbert": {"embedding_size": 32}, "fnet": {"left_alone": "pooler|embeddings"},
        "albert": {"embedding_size": 32},
        "funnel": {"block_sizes": [2, 2], "num_decoder_layers": 2, "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48},
    },
)  # fmt: skip
_others(
    "encoder-decoder", "Seq2SeqLM", rows.PAIRS,
    {
        "t5": T5 | {"path": "decoder.block"}, "longt5": T5 | {"path": "decoder.block"},
        "switch_transformers": T5 | {"path": "decoder.block"}, "bart": PAIR, "pegasus": PAIR, "m2m_100": PAIR,
        "nllb-moe": PAIR, "marian": PAIR | {"pad_token_id": VOCAB - 1, "decoder_start_token_id": VOCAB - 1},
        "led": PAIR | {
            "attention_window": 8, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 32
        },
        "t5gemma": {"encoder": HEADED, "decoder": HEADED, "decoder_start_token_id": 1},
    },
    path="decoder.layers",
)  # fmt: skip
_others(
    "vision-language", "ImageTextToText", rows.TEXT,
    {
        "llava": {
            "vision_config": CLIP, "text_config": {**TEXT, "model_type": "llama"}, "image_token_index": IMAGE_TOKEN,
            "vision_feature_layer": -1, "left_alone": "multi_modal_projector", "read": rows.pictures(IMAGE_TOKEN, 4),
        },
        "gemma3": {
            "vision_config": VISION, "text_config": HEADED, "mm_tokens_per_image": 4, "image_token_index": IMAGE_TOKEN,
            "read": rows.pictures(IMAGE_TOKEN, 4),
        },
        "qwen2_5_vl": {
            "vision_config": {**QWEN_VISION, "window_size": 16, "fullatt_block_indexes": [1]},
            "text_config": {**TEXT, **MULTIMODAL_ROPE},
        },
        "qwen3_vl": {
            "vision_config": {**QWEN_VISION, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16},
            "text_config": HEADED,
        },
        "smolvlm": {
            "vision_config": VISION, "text_config": {**TEXT, "model_type": "llama"}, "scale_factor": 1,
            "image_token_id": IMAGE_TOKEN, "path": "text_model.layers", "left_alone": "connector",
        },
        "paligemma": {
            "vision_config": {**SIGLIP, "projection_dim": 32}, "text_config": {**HEADED, "model_type": "gemma"},
            "image_token_index": IMAGE_TOKEN, "projection_dim": 32, "left_alone": "multi_modal_projector",
        },
        "internvl": {
            "vision_config": {**VISION, "image_size": [8, 8], "patch_size": [4, 4]},
            "text_config": {**TEXT, "model_type": "qwen2"}, "image_token_id": IMAGE_TOKEN,
            "left_alone": "multi_modal_projector",
        },
        "mistral3": {
            "vision_config": {**VISION, "model_type": "pixtral", "head_dim": 8},
            "text_config": {**TEXT, "model_type": "mistral"}, "image_token_index": IMAGE_TOKEN,
            "vision_feature_layer": -1, "left_alone": "multi_modal_projector",
        },
    },
    path="language_model.layers",
)  # fmt: skip
_others(
    "audio", "SpeechSeq2Seq", rows.speech("input_features", 8, 16),
    {
        "whisper": PAIR | {"max_source_positions": 8, "max_target_positions": 32, "num_mel_bins": 8},
        "moonshine": {
            "encoder_num_hidden_layers": 4, "decoder_num_hidden_layers": 4, "encoder_num_attention_heads": 4,
            "decoder_num_attention_heads": 4, "read": rows.speech("input_values", 1600),
        },
    },
    path="decoder.layers",
)  # fmt: skip
_others(
    "audio", "Seq2SeqLM", rows.TEXT,
    {name: {"audio_config": LISTENING, "text_config": {**TEXT, "model_type": text}}
     for name, text in (("qwen2_audio", "qwen2"), ("voxtral", "llama"))},
    path="language_model.layers", left_alone="multi_modal_projector",
)  # fmt: skip
_others(
    "audio", "AudioClassification", rows.classes_of("input_values", 400), {"wav2vec2": WAVES, "wavlm": WAVES},
    left_alone=r"feature_projection|projector|classifier",
)  # fmt: skip
_others(
    "vision", "ImageClassification", rows.classes_of("pixel_values", 3, 8, 8),
    {"vit": PICTURE, "dinov2": PICTURE, "beit": PICTURE}, left_alone="classifier",
)  # fmt: skip
