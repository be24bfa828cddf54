"""Whatever a user writes for settings, only `SettingsError` escapes, and what is taken is taken again as it came out."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args, get_type_hints

from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from layercard import PlacementSettings
from layercard.errors import SettingsError

FIELDS = dataclasses.fields(PlacementSettings)
HINTS = get_type_hints(PlacementSettings)
WORDS = [
    "auto",
    "indices",
    "strategy",
    "high",
    "budget",
    "uniform",
    "on",
    "off",
    "8GiB",
    "p.json",
    "{",
    "[3]",
    "3,7",
    "-1",
]
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(WORDS)
    | st.binary(max_size=4)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | LEAVES, inner, max_size=3),
    max_leaves=6,
)
"""What YAML, JSON and Python may hold."""


def right(field: dataclasses.Field[Any]) -> st.SearchStrategy[Any]:
    """Values of about the right kind for a setting, so that the checks of combinations are reached."""
    hint = HINTS[field.name]
    literals = [word for part in (hint, *get_args(hint)) for word in get_args(part) if isinstance(word, str)]
    numbers = st.integers(0, 12) | st.floats(0, 1) | st.lists(st.integers(0, 9), max_size=3)
    return st.sampled_from([*literals, field.default]) | st.booleans() | numbers | st.sampled_from(WORDS)


MAPPINGS = st.fixed_dictionaries({}, optional={field.name: right(field) | VALUES for field in FIELDS})


def settled(*given: Any, **values: Any) -> PlacementSettings | None:
    """The settings, None where they are refused; anything but `SettingsError` escapes."""
    try:
        return PlacementSettings.from_user(*given, **values)
    except SettingsError:
        return None


@settings(deadline=None, max_examples=examples())
@given(VALUES | st.text() | MAPPINGS)
def test_only_a_settings_error_escapes(written: Any) -> None:
    found = settled(written)
    if found is not None:
        assert found.validated() == found
        assert PlacementSettings.from_user(found) == found


@settings(deadline=None, max_examples=examples())
@given(MAPPINGS)
def test_single_settings_are_read_like_a_mapping(values: dict[str, Any]) -> None:
    found = settled(**values)
    if found is not None:
        assert found.validated() == found


@settings(deadline=None, max_examples=examples())
@given(st.text(alphabet="{}[]:, 'abhigh0.5-&*!|>%@`\"\n\t\0", max_size=20).map(lambda text: f"{{{text}"))
def test_a_mapping_in_a_shell_is_read_or_refused(written: str) -> None:
    settled(written)
