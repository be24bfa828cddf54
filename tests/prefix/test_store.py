"""The store: bounded memory, then files, then nothing; what is damaged or foreign is never read."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from layercard.prefix.files import SUFFIX, TEMPORARY
from layercard.prefix.store import ActivationStore

EXAMPLES = {bytes([i]): torch.randn(40, 64, generator=torch.Generator().manual_seed(i)) for i in range(60)}
SIZE = 40 * 64 * 4


def filled(directory: Path, limit: int, dtype: torch.dtype = torch.float32) -> ActivationStore:
    store = ActivationStore(limit, directory, "model")
    for key, hidden in EXAMPLES.items():
        store.put(key, hidden.to(dtype))
    return store


def held(store: ActivationStore) -> int:
    """How many examples it holds; each has to be what was put there."""
    count = 0
    for key, hidden in EXAMPLES.items():
        found = store.get(key)
        if found is not None:
            assert torch.equal(found, hidden.to(found.dtype))
            count += 1
    return count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_is_held_in_memory_then_in_files(tmp_path: Path, dtype: torch.dtype) -> None:
    limit = 20 * SIZE
    store = filled(tmp_path / "cache", limit, dtype)
    assert held(store) == 60
    assert 0 < store.bytes_in_memory <= limit
    assert store.bytes_on_disk > 20 * SIZE * dtype.itemsize // 4
    assert not list((tmp_path / "cache").glob(f"*{TEMPORARY}"))
    store.close()
    assert list(tmp_path.iterdir()) == []
    assert held(store) == 0


def test_without_files_where_memory_suffices(tmp_path: Path) -> None:
    store = filled(tmp_path / "cache", 100 * SIZE)
    assert held(store) == 60
    assert not (tmp_path / "cache").exists()


def test_files_of_a_killed_run_are_used_again_and_its_temporary_ones_removed(tmp_path: Path) -> None:
    first = filled(tmp_path, 2**16)
    (tmp_path / f"x{TEMPORARY}").write_bytes(b"half")
    on_disk = held(first) - first.bytes_in_memory // SIZE
    second = ActivationStore(2**16, tmp_path, "model")
    assert held(second) == on_disk
    assert not list(tmp_path.glob(f"*{TEMPORARY}"))


def test_files_of_another_model_are_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path, 2**16)
    with caplog.at_level(logging.WARNING, "layercard"):
        store = ActivationStore(2**16, tmp_path, "another model")
    assert held(store) == 0
    assert "another model" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["start", "header", "body", "empty", "longer", "flipped", "gone"])
@pytest.mark.parametrize("when", ["between runs", "during a run"])
def test_damaged_files_are_computed_again(
    tmp_path: Path, damage: str, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = filled(tmp_path, 2**16)
    files = sorted(tmp_path.glob(f"*{SUFFIX}"))
    assert len(files) > 2
    whole = held(store)
    content = files[0].read_bytes()
    short = {"start": 5, "header": 60, "body": len(content) - 7, "empty": 0}
    if damage == "gone":
        files[0].unlink()
    elif damage == "flipped":
        files[0].write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    else:
        files[0].write_bytes(content[: short[damage]] if damage in short else content + b"more")
    with caplog.at_level(logging.WARNING, "layercard"):
        if when == "between runs":
            store = ActivationStore(2**16, tmp_path, "model")
        assert 0 < held(store) < whole
    if not (damage == "gone" and when == "between runs"):
        assert "computed again" in caplog.text
        assert not files[0].exists()
    lost = next(key for key in EXAMPLES if store.get(key) is None)
    store.put(lost, EXAMPLES[lost])
    assert torch.equal(store.get(lost), EXAMPLES[lost])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB; mounting one needs root, so elsewhere these tests are left out, with the reason."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_ends_in_one_warning_and_what_is_held_stays_right(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "layercard"):
        store = filled(small_disk / "cache", 2**16)
    assert 0 < held(store) < 60
    assert caplog.text.count("stops growing") == 1
    assert not list(small_disk.rglob(f"*{TEMPORARY}"))
    store.close()
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_others_fill_meanwhile(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Free space is checked before a file is written; the write itself may fail all the same."""
    from layercard.prefix.files import write_shard

    (small_disk / "other").write_bytes(b"x" * 200_000)
    with pytest.raises(OSError, match="No space left"):
        write_shard(small_disk, "model", dict(list(EXAMPLES.items())[:20]))
    assert [path.name for path in small_disk.iterdir()] == ["other"]


def test_a_directory_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING, "layercard"):
        store = filled(tmp_path / "file" / "cache", 2**18)
    assert held(store) > 0
    assert caplog.text.count("stops growing") == 1
