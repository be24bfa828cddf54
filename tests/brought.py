"""Models as people bring them to the command line, saved beside a tokenizer, and rows in every kind of file."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from tiny import VOCAB, tiny_tokenizer

POSITIONS = 66
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
PAIR: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
GPT = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
T5 = {
    "vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip
TEXT = {
    **{name: BASE[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")},
    "num_key_value_heads": 2, "num_hidden_layers": 4, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
TOWER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip

ENCODERS: dict[str, Callable[..., hf.PreTrainedConfig]] = {
    "roberta": lambda **more: hf.RobertaConfig(**BASE, **more),
    "xlm-roberta": lambda **more: hf.XLMRobertaConfig(**BASE, **more),
    "xlm-roberta-xl": lambda **more: hf.XLMRobertaXLConfig(**BASE, **more),
    "camembert": lambda **more: hf.CamembertConfig(**BASE, **more),
    "mpnet": lambda **more: hf.MPNetConfig(**BASE, **more),
    "esm": lambda **more: hf.EsmConfig(**BASE, position_embedding_type="absolute", mask_token_id=4, **more),
    "esm rotary": lambda **more: hf.EsmConfig(**BASE, position_embedding_type="rotary", mask_token_id=4, **more),
    "longformer": lambda **more: hf.LongformerConfig(**BASE, attention_window=[8, 8], **more),
    "data2vec-text": lambda **more: hf.Data2VecTextConfig(**BASE, **more),
    "roberta-prelayernorm": lambda **more: hf.RobertaPreLayerNormConfig(**BASE, **more),
    "ibert": lambda **more: hf.IBertConfig(**BASE, **more),
    "bert": lambda **more: hf.BertConfig(**BASE, **more),
    "electra": lambda **more: hf.ElectraConfig(**BASE, embedding_size=32, **more),
    "distilbert": lambda **more: hf.DistilBertConfig(
        vocab_size=VOCAB, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=POSITIONS, **more
    ),
    "deberta": lambda **more: hf.DebertaConfig(**BASE, **more),
    "deberta-v2": lambda **more: hf.DebertaV2Config(
        **{**BASE, "pad_token_id": 0}, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, **more
    ),
    "modernbert": lambda **more: hf.ModernBertConfig(**{**BASE, "pad_token_id": 0}, **more),
    "roformer": lambda **more: hf.RoFormerConfig(**BASE, **more),
}
DECODERS: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "gpt2": lambda: hf.GPT2Config(**GPT),
    "gptj": lambda: hf.GPTJConfig(**GPT, rotary_dim=4),
    "gpt-neo": lambda: hf.GPTNeoConfig(
        vocab_size=VOCAB, hidden_size=32, num_layers=2, num_heads=4, max_position_embeddings=64,
        attention_types=[[["global", "local"], 1]],
    ),
    "openai-gpt": lambda: hf.OpenAIGPTConfig(**GPT),
    "opt": lambda: hf.OPTConfig(
        vocab_size=VOCAB, hidden_size=32, ffn_dim=48, num_attention_heads=4, num_hidden_layers=2,
        max_position_embeddings=POSITIONS, word_embed_proj_dim=32,
    ),
    "mpt": lambda: hf.MptConfig(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, max_seq_len=64),
    "codegen": lambda: hf.CodeGenConfig(**GPT, rotary_dim=4),
    "biogpt": lambda: hf.BioGptConfig(**BASE),
    "llama": lambda: hf.LlamaConfig(**BASE),
}  # fmt: skip
TRANSLATORS: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "t5": lambda: hf.T5Config(**T5),
    "bart": lambda: hf.BartConfig(**PAIR),
    "mbart": lambda: hf.MBartConfig(**PAIR),
    "marian": lambda: hf.MarianConfig(**{**PAIR, "pad_token_id": 119, "decoder_start_token_id": 119}),
    "pegasus": lambda: hf.PegasusConfig(**PAIR),
    "led": lambda: hf.LEDConfig(
        **{name: value for name, value in PAIR.items() if name != "max_position_embeddings"},
        max_encoder_position_embeddings=64, max_decoder_position_embeddings=32, attention_window=8,
    ),
}  # fmt: skip
PICTURED: dict[str, tuple[str, Callable[[], hf.PreTrainedConfig]]] = {
    "llava": (
        "language_model.layers",
        lambda: hf.LlavaConfig(
            text_config=hf.LlamaConfig(**TEXT),
            vision_config=hf.CLIPVisionConfig(**TOWER, projection_dim=32),
            image_token_index=119,
        ),
    ),
    "qwen2.5-vl": (
        "language_model.layers",
        lambda: hf.Qwen2_5_VLConfig(
            text_config={
                **TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
            },
            vision_config={
                "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32,
                "patch_size": 8,
            },
            image_token_id=118, video_token_id=117, vision_start_token_id=116, vision_end_token_id=115,
        ),
    ),
    "smolvlm": (
        "text_model.layers",
        lambda: hf.SmolVLMConfig(
            text_config=hf.LlamaConfig(**TEXT), vision_config=TOWER, image_token_id=118, scale_factor=1
        ),
    ),
    "gemma3": (
        "language_model.layers",
        lambda: hf.Gemma3Config(
            text_config={**TEXT, "head_dim": 8}, vision_config=TOWER, image_token_index=118, mm_tokens_per_image=4
        ),
    ),
}  # fmt: skip
"""Vision-language models with the end of the path of their language layers."""


def masked_tokenizer() -> hf.PreTrainedTokenizerFast:
    """The tiny tokenizer with a mask token."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "~"})
    return tokenizer


def closing_tokenizer() -> hf.PreTrainedTokenizerFast:
    """The tiny tokenizer that writes `<bos>` before and `<eos>` behind every text, as encoders' tokenizers do."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = masked_tokenizer()
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<bos>", "<eos>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> $B:1 <eos>:1", special_tokens=ids
    )
    return tokenizer


def made(auto: Any, config: hf.PreTrainedConfig, seed: int = 0) -> Any:
    """Return a random model."""
    torch.manual_seed(seed)
    return auto.from_config(config)


def save(folder: Path, model: Any, tokenizer: Any = None, **config: Any) -> Path:
    """Save a model beside a tokenizer; keywords change config.json afterwards, None removes the key."""
    model.save_pretrained(folder)
    (tokenizer or masked_tokenizer()).save_pretrained(folder)
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **config}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows in the kind of file that the path ends in."""
    if path.suffix == ".parquet":
        import datasets

        datasets.Dataset.from_list(rows).to_parquet(str(path))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))
    return path
