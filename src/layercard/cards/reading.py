"""Reads Layer Cards from files that nobody vouches for: JSON alone, bounded in size and depth, inside one folder.

A file is refused before it is parsed where it is too large, nested too deeply, no plain file, or a link that leads out
of the folder; while it is parsed where a key stands twice in one object or a number is not finite.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from layercard.cards.card import LayerCard
from layercard.cards.schema import check_card
from layercard.errors import CardError

MAX_BYTES = 4 * 2**20
"""A card of a hundred layers and nine scores takes a fifth of a megabyte."""
MAX_DEPTH = 16
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
"""Strings, closed or not, and brackets: one pass, whatever the text."""


def card_files(folder: Path) -> Iterator[Path]:
    """Yield the JSON files under `folder` in order, hidden ones left out; links and closed folders as they are."""
    try:
        inside = sorted(folder.iterdir())
    except OSError:
        yield folder
        return
    for path in inside:
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from card_files(path)
        elif path.suffix == ".json" or path.is_symlink():
            yield path


def read_card(path: Path, *, folder: Path | None = None, source: str | None = None) -> LayerCard:
    """Return the card in a file; `source` names it in messages. Raises `CardError` with everything that is wrong.

    With `folder` the file must lie in it, links followed.
    """
    name = source or path.name
    return check_card(parse(read_text(path, folder, name), name), name)


def read_text(path: Path, folder: Path | None, name: str) -> str:
    """Return a card file's text, checked for where it lies, what it is and how large; raise `CardError`."""
    try:
        real = path.resolve(strict=True)
        if folder is not None and not real.is_relative_to(folder.resolve(strict=True)):
            raise CardError(f"{name}: a link that leads out of the folder of cards. Put the file itself there.")
        found = real.stat()
        if not stat.S_ISREG(found.st_mode):
            raise CardError(f"{name}: not a file. A Layer Card is one JSON file.")
        if found.st_size > MAX_BYTES:
            raise _too_large(name, found.st_size)
        with real.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise CardError(f"{name}: there is no such file. Give the path of a Layer Card.") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead in a circle
        raise CardError(f"{name}: it cannot be read ({error.__class__.__name__}). Check the file.") from None
    if len(content) > MAX_BYTES:
        raise _too_large(name, len(content))
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise CardError(f"{name}: it is not UTF-8 text. A Layer Card is JSON.") from None


def parse(text: str, name: str) -> Any:
    """Return what the JSON text holds; `name` stands in messages. Raises `CardError`."""
    depth = 0
    for token in _TOKENS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth > MAX_DEPTH:
            raise CardError(f"{name}: nested more than {MAX_DEPTH} deep. A Layer Card is nested about 6 deep.")
    try:
        return json.loads(text, object_pairs_hook=_without_twins, parse_constant=_refuse_constant)
    except _TwinError as twin:
        raise CardError(f"{name}: the key `{twin}` stands twice in one object. Keep one of them.") from None
    except _ConstantError as constant:
        raise CardError(f"{name}: it holds {constant}, which is not a finite number. Leave the field out.") from None
    except ValueError as error:
        raise CardError(f"{name}: it is not JSON ({error}).") from None


class _TwinError(ValueError):
    """A key that stands twice in an object."""


class _ConstantError(ValueError):
    """NaN or an infinity, which Python reads and JSON does not know."""


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        raise _TwinError(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
    return found


def _refuse_constant(constant: str) -> NoReturn:
    raise _ConstantError(constant)


def _too_large(name: str, size: int) -> CardError:
    return CardError(f"{name}: {size:,} bytes; a Layer Card has at most {MAX_BYTES:,}. Keep scores of layers alone.")
