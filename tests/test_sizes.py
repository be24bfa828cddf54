"""What users may write for `prefix_cache`."""

from __future__ import annotations

import pytest

from layercard.errors import SettingsError
from layercard.sizes import parse_prefix_cache, projected_bytes


@pytest.mark.parametrize(
    ("text", "limit"), [("8GiB", 2**33), ("500 MB", 5 * 10**8), ("1.5 kib", 1536), ("off", None), (False, None)]
)
def test_sizes(text: str, limit: int | None) -> None:
    assert parse_prefix_cache(text) == limit


def test_on_is_a_share_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = parse_prefix_cache("on")
    assert alone is not None
    assert alone > 2**28
    assert parse_prefix_cache(True) == alone
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert parse_prefix_cache("on") == alone // 2


@pytest.mark.parametrize("text", ["8", "GiB", "-1GiB", "8 gigs", "", "0B", "9" * 400 + "B", 8, None])
def test_anything_else_is_refused(text: object) -> None:
    with pytest.raises(SettingsError, match="`prefix_cache` is"):
        parse_prefix_cache(text)  # type: ignore[arg-type]


def test_projection() -> None:
    assert projected_bytes(1000, 576, 2) == 1_152_000
