"""Where cached hidden states are kept: in memory up to a limit, then in files, then not at all.

Offers `ActivationStore`, a mapping from content keys to hidden states of one example. It knows nothing of
models but an identity string; files of another identity, cut short or changed are removed and their examples
computed again.
"""

from __future__ import annotations

import logging
import shutil
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from layercard.prefix.files import SUFFIX, TEMPORARY, DamagedFileError, ShardFile, write_shard

log = logging.getLogger("layercard")

KEPT_FREE = 0.05
"""The share of a disk that is left free for checkpoints."""


class ActivationStore:
    """Hidden states by content key. `limit_bytes` bounds the memory, `directory` takes what is beyond it.

    Files that a killed run left in `directory` are used again where they fit; `close` removes all. `beside` are stores that
    live meanwhile: what they hold in memory counts against the limit, and their files are let be.
    """

    def __init__(
        self, limit_bytes: int, directory: Path, identity: str, *, beside: Sequence[ActivationStore] = ()
    ) -> None:
        self._limit, self._directory, self._identity = limit_bytes, directory, identity
        self._beside = tuple(beside)
        self._shard_bytes = min(max(limit_bytes // 8, 2**16), 2**24)
        self._memory: dict[bytes, Tensor] = {}
        self._pending: dict[bytes, Tensor] = {}
        self._files: dict[bytes, ShardFile] = {}
        self._keys_in: Counter[ShardFile] = Counter()
        self._paths: set[Path] = set()
        self._memory_bytes = self._pending_bytes = 0
        self._disk_full = False
        self._removal: Callable[[], object] = partial(_remove, self._paths, directory)
        self._open_files()

    def __contains__(self, key: bytes) -> bool:
        return key in self._memory or key in self._pending or key in self._files

    def __len__(self) -> int:
        return len(self._memory) + len(self._pending) + len(self._files)

    @property
    def bytes_in_memory(self) -> int:
        """Bytes of hidden states held in memory."""
        return self._memory_bytes + self._pending_bytes

    @property
    def bytes_on_disk(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self._keys_in)

    def in_memory(self, key: bytes) -> bool:
        """Whether the hidden states of `key` are held, and not in a file."""
        return key in self._memory or key in self._pending

    def get(self, key: bytes) -> Tensor | None:
        """Return the hidden states (tokens, width) on CPU, or None where they are not held, or no longer whole."""
        held = self._memory.get(key, self._pending.get(key))
        if held is not None or key not in self._files:
            return held
        try:
            return self._files[key].read(key)
        except DamagedFileError as error:
            self._drop(self._files[key], error)
            return None

    def put(self, key: bytes, hidden: Tensor) -> bool:
        """Keep a copy of the hidden states (tokens, width) and return True; False where memory and disk are full."""
        if key in self:
            return True
        size = _bytes_of(hidden)
        room = self._limit - self._shard_bytes - sum(store.bytes_in_memory for store in self._beside)
        if self._memory_bytes + size <= room:
            self._memory[key] = hidden.detach().to("cpu", copy=True)
            self._memory_bytes += size
            return True
        if self._disk_full:
            return False
        self._pending[key] = hidden.detach().to("cpu", copy=True)
        self._pending_bytes += size
        if self._pending_bytes >= self._shard_bytes:
            self._spill()
        return key in self

    def drop(self, key: bytes) -> None:
        """Forget one example; a file goes when nothing in it is held any more."""
        if key in self._memory:
            self._memory_bytes -= _bytes_of(self._memory.pop(key))
        elif key in self._pending:
            self._pending_bytes -= _bytes_of(self._pending.pop(key))
        elif key in self._files:
            self._forget(self._files.pop(key))

    def clear(self) -> None:
        """Forget everything and remove the files."""
        for file in self._keys_in:
            self._unlink(file)
        for held in (self._memory, self._pending, self._files, self._keys_in):
            held.clear()
        self._memory_bytes = self._pending_bytes = 0

    def restart(self, identity: str) -> None:
        """Forget everything; what comes belongs to another model."""
        self.clear()
        self._identity = identity

    def close(self) -> None:
        """Remove every file, and the directory where nothing else is in it."""
        self.clear()
        self._removal()

    def leave_nothing(self) -> None:
        """Remove the files even where nobody closes the store, as after an exception in training: with the last reference."""
        self._removal = weakref.finalize(self, _remove, self._paths, self._directory)

    def _spill(self) -> None:
        pending, size = self._pending, self._pending_bytes
        self._pending, self._pending_bytes = {}, 0
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            disk = shutil.disk_usage(self._directory)
            if disk.free - size < KEPT_FREE * disk.total:
                raise OSError(f"{disk.free / 2**20:.0f} MiB are free")
            file = ShardFile(write_shard(self._directory, self._identity, pending), self._identity)
        except (OSError, DamagedFileError) as error:
            self._disk_full = True
            log.warning(
                "The prefix cache stops growing: %s takes no more (%s). Training goes on and computes the rest. "
                "Give it a larger `prefix_cache` or more disk.",
                self._directory,
                error,
            )
            return
        self._add(file)

    def _open_files(self) -> None:
        if not self._directory.is_dir():
            return
        for path in self._directory.glob(f"*{TEMPORARY}"):
            path.unlink(missing_ok=True)
        others = {path for store in self._beside for path in store._paths}
        for path in sorted({*self._directory.glob(f"*{SUFFIX}")} - others):
            try:
                file = ShardFile(path, self._identity)
            except DamagedFileError as error:
                log.warning("A file of the prefix cache is computed again: %s.", error)
                path.unlink(missing_ok=True)
                continue
            self._add(file)

    def _add(self, file: ShardFile) -> None:
        self._paths.add(file.path)
        for key in file.keys:
            if key in self._files:  # two files of killed runs may hold the same example
                self._forget(self._files[key])
            self._files[key] = file
            self._keys_in[file] += 1

    def _forget(self, file: ShardFile) -> None:
        """One example fewer is held in `file`."""
        self._keys_in[file] -= 1
        if self._keys_in[file] == 0:
            del self._keys_in[file]
            self._unlink(file)

    def _drop(self, file: ShardFile, error: DamagedFileError) -> None:
        log.warning("A file of the prefix cache is computed again: %s.", error)
        self._files = {key: other for key, other in self._files.items() if other is not file}
        del self._keys_in[file]
        self._unlink(file)

    def _unlink(self, file: ShardFile) -> None:
        file.path.unlink(missing_ok=True)
        self._paths.discard(file.path)


def _bytes_of(hidden: Tensor) -> int:
    return hidden.numel() * hidden.element_size()


def _remove(paths: Iterable[Path], directory: Path) -> None:
    """Remove these files, and the directory where nothing else is in it."""
    for path in paths:
        path.unlink(missing_ok=True)
    if directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()
