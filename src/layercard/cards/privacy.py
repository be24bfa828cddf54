"""What must not stand in a file that people share: where things lie on somebody's machine, secrets, addresses.

`leaks` finds it in a card; `redact` takes it out of a text such as the command that built one. Both go by form: they
know absolute paths, the usual kinds of access tokens, credentials in addresses, and e-mail addresses. A private name
in plain words is not recognised; `redact` takes out the names that it is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_BEFORE = r"(?:^|(?<=[\s\"'=:,;(\[<>|]))"
FORMS: dict[str, re.Pattern[str]] = {
    "an access token": re.compile(
        r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}|\bgh[opusr]_[A-Za-z0-9]{16,}|\bgithub_pat_\w{16,}|\bsk-[\w-]{16,}"
        r"|\bAKIA[0-9A-Z]{16}\b|\bxox[abprs]-[\w-]{10,}|\beyJ[\w-]{10,}\.[\w-]{10,}|-----BEGIN [A-Z ]*KEY"
        r"|(?i:\b(?!(?:bos|eos|pad|unk|sep|cls|mask|image)_)(?:[\w-]*token|password|passwd|secret|api[_-]?key)\s*[=:]\s*)(?!null|none|\*)[\w./+-]{6,}"
    ),
    "credentials": re.compile(r"://[^/\s:@]+:[^/\s@]+@"),
    "a path from the root": re.compile(
        rf"file://|{_BEFORE}/(?:[\w.+~@-]+/[\w.+~@%-]|(?:home|root|Users|tmp|mnt|var)\b)"
        rf"|{_BEFORE}[A-Za-z]:[\\/]\w|{_BEFORE}\\\\\w"
    ),
    "a home directory": re.compile(rf"{_BEFORE}~[\w-]*/"),
    "an e-mail address": re.compile(r"\b[\w.+-]+@[\w-]+\.[\w.-]*\w"),
    "a control character": re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"),
}
"""What is refused, by what it is called in messages."""


_WORD = re.compile(r"[^\s\"'=,;()\[\]<>|]+")


def leaks(document: Any) -> Iterator[tuple[str, str]]:
    """Yield (where, what) for every text or key in a JSON document that must not be shared."""
    for where, text in texts(document):
        for what, form in FORMS.items():
            if form.search(text):
                yield where, what


def texts(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield (path, text) for every string in a JSON document, keys included."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield where or "the document", key
            yield from texts(item, f"{where}.{key}" if where else key)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from texts(item, f"{where}[{index}]")


def redact(text: str, names: Iterable[str] = ()) -> str:
    """Return `text` with absolute paths cut to their last part, and tokens, addresses and `names` replaced.

    `names` are private ones in plain words: a person's, a machine's.
    """
    text = FORMS["credentials"].sub("://…@", text)
    text = re.sub(r"\S*" + FORMS["an e-mail address"].pattern, "…", text)
    text = FORMS["an access token"].sub("…", text)
    text = _WORD.sub(lambda word: _last_part(word[0]), text)
    text = FORMS["a control character"].sub("", text)
    for name in names:
        text = re.sub(rf"\b{re.escape(name)}\b", "…", text) if name else text
    return text


def _last_part(word: str) -> str:
    paths = (FORMS["a path from the root"], FORMS["a home directory"])
    return re.split(r"[\\/]", word.rstrip("\\/"))[-1] if any(form.search(word) for form in paths) else word
