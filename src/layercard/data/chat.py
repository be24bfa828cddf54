"""Tokens of language modelling examples by transformers' own chat templates, as TRL's SFTTrainer makes them.

Offers `tokenize_example`, which layercard answers with where no plugin knows the trainer better, and `text_tokenizer`.
Values were checked before.
"""

from __future__ import annotations

import json
from typing import Any

IGNORED = -100


def text_tokenizer(tokenizer: Any) -> Any:
    """Return the tokenizer inside a multimodal processor, or the tokenizer itself."""
    from transformers import ProcessorMixin

    return tokenizer.tokenizer if isinstance(tokenizer, ProcessorMixin) else tokenizer


def tokenize_example(tokenizer: Any, example: dict[str, Any]) -> dict[str, list[int]]:
    """Return `input_ids` and `labels` of one example, uncut; labels are -100 on a prompt.

    `example` holds `prompt` and `completion` (text, or messages), `messages`, `conversations` (messages that say `from`
    and `value`) or `text`, and perhaps `tools` and `chat_template_kwargs`. Raises what the template raises.
    """
    if "prompt" in example:
        return _completion(tokenizer, example)
    if "text" in example:
        ids = _ids(tokenizer, ended(example["text"], tokenizer))
    else:
        messages = example["messages"] if "messages" in example else renamed(example["conversations"])
        ids = _ids(tokenizer, messages, **_options(example))
    return {"input_ids": ids, "labels": list(ids)}


def _completion(tokenizer: Any, example: dict[str, Any]) -> dict[str, list[int]]:
    """Label what follows the tokens that prompt alone and whole example begin with alike."""
    prompt, completion = example["prompt"], example["completion"]
    if isinstance(prompt, str):
        before, ids = _ids(tokenizer, prompt), _ids(tokenizer, prompt + ended(completion, tokenizer))
    else:
        options = _options(example)
        before = _ids(tokenizer, prompt, add_generation_prompt=True, **options)
        ids = _ids(tokenizer, prompt + completion, **options)
    pairs = enumerate(zip(before, ids, strict=False))
    start = next((i for i, (one, other) in pairs if one != other), min(len(before), len(ids)))
    return {"input_ids": ids, "labels": [IGNORED] * start + ids[start:]}


def ended(text: str, tokenizer: Any) -> str:
    """Return the text with the end-of-sequence token, once."""
    eos = text_tokenizer(tokenizer).eos_token
    return text if eos is None or text.endswith(eos) else text + eos


def renamed(conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages that say `from` and `value` as messages that say `role` and `content`."""
    names = {"from": "role", "value": "content"}
    return [{names.get(key, key): value for key, value in message.items()} for message in conversation]


def _options(example: dict[str, Any]) -> dict[str, Any]:
    tools = example.get("tools")
    return {
        "tools": json.loads(tools) if isinstance(tools, str) else tools,
        **(example.get("chat_template_kwargs") or {}),
    }


def _ids(tokenizer: Any, text: Any, **options: Any) -> list[int]:
    """Return the tokens of a text or of messages; a processor takes the latter's text in parts, and gives a batch of one."""
    processor = text_tokenizer(tokenizer) is not tokenizer
    if isinstance(text, str):
        found = tokenizer(text=text)
    else:
        messages = [_in_parts(message) for message in text] if processor else text
        found = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
    ids: list[int] = found["input_ids"][0] if processor else found["input_ids"]
    return ids


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def tokenize_by_template(tokenizer: Any, examples: list[dict[str, Any]]) -> list[dict[str, list[int]]]:
    """Return the tokens of language modelling examples by the tokenizer's own chat template, in order."""
    return [tokenize_example(tokenizer, example) for example in examples]
