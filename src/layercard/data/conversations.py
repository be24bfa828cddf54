"""What can be wrong with the values of a language modelling example, and what to do: `check_part` and `template_error`.

The checks need no tokenizer. Where a chat template refuses a conversation, the message at which it does is found by
rendering the conversation's beginnings.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from jinja2 import TemplateError

from layercard.errors import DataError, one_of

ROLES = ("system", "user", "assistant", "tool")
REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)
"""What a chat template raises where a conversation does not suit it."""
Render = Callable[[list[dict[str, Any]]], Any]


def check_part(value: Any, part: str, column: str, place: str) -> None:
    """Raise `DataError` where the value cannot play its part: `messages`, `conversations`, `prompt`, `completion`, `text`."""
    talks, writes = part in {"messages", "conversations"}, part == "text"
    if isinstance(value, str) and not talks:
        return
    if isinstance(value, list) and not writes:
        _check_messages(value, part, column, place)
        return
    wanted = "a list of messages with `role` and `content`" if talks else "a string"
    wanted += "" if talks or writes else ", or a list of messages"
    raise DataError(
        f"{place}: `{column}` is {value!r:.60}. Every example needs {wanted} there.{_parsing(value, talks)}"
    )


def check_beside(value: Any, part: str, column: str, place: str) -> None:
    """Raise `DataError` where the value cannot be `tools` or `chat_template_kwargs`; both may be missing."""
    if value is None or (part == "chat_template_kwargs" and isinstance(value, dict)):
        return
    if part == "tools" and isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{place}: `{column}` is {value!r:.60}, which is not JSON ({error}). Mend the row."
            ) from None
    if part == "tools" and (value is None or isinstance(value, list)):
        return
    wanted = "a list of tool schemas, or one as JSON text" if part == "tools" else "an object"
    raise DataError(f"{place}: `{column}` is {value!r:.60}. Give {wanted} there, or null.")


def _parsing(value: Any, talks: bool) -> str:
    if talks and isinstance(value, str) and value.lstrip().startswith("["):
        return " It is a list written as text: save the rows as JSON lines or Parquet, which keep lists."
    return " Give it one, or leave the row out." if value is None else ""


def _check_messages(messages: list[Any], part: str, column: str, place: str) -> None:
    if not messages:
        raise DataError(f"{place}: `{column}` is an empty list. Give it a message, or leave the row out.")
    keys = ("from", "value") if part == "conversations" else ("role",)
    for i, message in enumerate(messages):
        if isinstance(message, dict) and all(message.get(key) is not None for key in keys):
            _refuse_pictures(message, i, column, place)
            continue
        wanted = "`from` and `value`" if part == "conversations" else "`role` and `content`"
        raise DataError(
            f"{place}: message {i} of `{column}` is {message!r:.60}. Every example needs a list of messages with {wanted} "
            f"there.{_other_keys(message, part)}"
        )


def _other_keys(message: Any, part: str) -> str:
    if not isinstance(message, dict):
        return ""
    if part == "conversations" and "role" in message:
        return " Rename the column to `messages`, or say `--column messages=conversations`."
    if part != "conversations" and "from" in message:
        return " Rename `from` to `role` and `value` to `content`, or the column to `conversations`, as TRL takes them."
    return ""


def _refuse_pictures(message: dict[str, Any], index: int, column: str, place: str) -> None:
    content = message.get("content")
    for part in content if isinstance(content, list) else []:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in {"image", "image_url", "video", "audio"}:
            raise DataError(
                f"{place}: message {index} of `{column}` holds a part of type {kind!r}; only text is read here. Leave such "
                "rows out, or choose by depth: `layercard plan MODEL --lora-layers last`."
            )


def template_error(
    messages: list[dict[str, Any]], column: str, place: str, error: Exception, render: Render
) -> DataError:
    """Return the error for a conversation that the chat template refuses: which message, what it said, what to do."""
    index = _first_refused(messages, render)
    message = messages[index]
    said = " ".join(str(error).split()) or type(error).__name__
    return DataError(
        f"{place}: the chat template refuses message {index} of `{column}` (role {message.get('role')!r}): "
        f"{said if said.endswith(('.', '!', '?')) else said + '.'} {_remedy(messages, index, error)}"
    )


def _first_refused(messages: list[dict[str, Any]], render: Render) -> int:
    """Return the index of the message with which the conversation's beginning is refused for the first time."""
    for index in range(len(messages)):
        try:
            render(messages[: index + 1])
        except REFUSALS:
            return index
    return len(messages) - 1


def _remedy(messages: list[dict[str, Any]], index: int, error: Exception) -> str:
    """Return the advice for a refused message by its field, its role and those before it."""
    message = messages[index]
    role, content = message.get("role"), message.get("content")
    before = messages[index - 1].get("role") if index else None
    lists = isinstance(error, TypeError) or "content" in str(error) or "str" in str(error)
    if isinstance(content, list) and lists:
        return "Its `content` is a list of parts, and this template reads text: join the parts into one string."
    if content is None and not message.get("tool_calls"):
        return "It has no `content`: give it text, or leave the message out."
    if content is None:
        return (
            "It has `tool_calls` and no `content`, which this template does not read: use a chat template with tools."
        )
    if role not in ROLES:
        return f"Roles are {one_of(ROLES)}: rename {role!r} (such as `human` to `user`, `gpt` to `assistant`)."
    if role == "system":
        return "This template takes no system turn here: fold its text into the first user turn."
    if role == "tool":
        return "This template has no tool turns: use a chat template with tools, or write the results as user text."
    if role == before:
        return f"Two {role!r} turns follow each other: merge them into one."
    if index == 0 and role == "assistant":
        return "The conversation begins with the assistant: begin with a user turn."
    if before == "system":
        return "It follows a system turn, which may be what this template does not take: fold that into the first user turn."
    return "Change the row, or give the tokenizer another chat template."
