"""One file of cached hidden states: written to a temporary name and renamed, read through a memory map.

A file is a magic number, the length and checksum of a JSON header, the header (which model, which examples,
where each lies and its checksum), and the raw numbers. Whatever does not fit raises `DamagedFileError`: the
reader recomputes.
"""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIX = ".layercard-prefix"
TEMPORARY = ".layercard-prefix-tmp"
MAGIC = b"LCPREFX1"
START = len(MAGIC) + 16


class DamagedFileError(Exception):
    """A cache file is cut short, unreadable, changed, or of another model."""


def write_shard(directory: Path, identity: str, hidden: Mapping[bytes, Tensor]) -> Path:
    """Write the hidden states, each (tokens, width) on CPU, to a new file and return its path.

    Raises OSError where the disk is full; nothing is left behind then.
    """
    bodies = {key: _bytes_of(tensor) for key, tensor in hidden.items()}
    header = _header(identity, hidden, bodies)
    handle, temporary = tempfile.mkstemp(dir=directory, suffix=TEMPORARY)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(MAGIC + len(header).to_bytes(8, "little") + zlib.crc32(header).to_bytes(8, "little"))
            file.write(header)
            for body in bodies.values():
                file.write(body.data)
        path = Path(temporary.removesuffix(TEMPORARY) + SUFFIX)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _bytes_of(tensor: Tensor) -> NDArray[np.uint8]:
    return tensor.detach().contiguous().view(torch.uint8).numpy()


def _header(identity: str, hidden: Mapping[bytes, Tensor], bodies: Mapping[bytes, NDArray[np.uint8]]) -> bytes:
    entries, offset = {}, 0
    for key, body in bodies.items():
        entries[key.hex()] = [offset, *hidden[key].shape, zlib.crc32(body.data)]
        offset += body.nbytes
    dtype = str(next(iter(hidden.values())).dtype).removeprefix("torch.")
    return json.dumps({"identity": identity, "dtype": dtype, "bytes": offset, "entries": entries}).encode()


class ShardFile:
    """An open cache file. Raises `DamagedFileError` where it is not whole, or of another `identity`."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        header, body_at = _read_header(path)
        if header["identity"] != identity:
            raise DamagedFileError(f"{path} was written for another model or entry")
        self._dtype: torch.dtype = getattr(torch, header["dtype"])
        self._entries = {bytes.fromhex(key): entry for key, entry in header["entries"].items()}
        self._body_at, self._size = body_at, body_at + header["bytes"]
        self._check_size()
        self._map = np.memmap(path, dtype=np.uint8, mode="r")

    @property
    def keys(self) -> list[bytes]:
        """The examples it holds."""
        return list(self._entries)

    @property
    def size_bytes(self) -> int:
        """The size of the file."""
        return self._size

    def read(self, key: bytes) -> Tensor:
        """Return a copy of the hidden states (tokens, width) of an example that it holds."""
        offset, tokens, width, checksum = self._entries[key]
        self._check_size()  # reading a map beyond the end of a file that was cut short kills the process
        begin = self._body_at + offset
        body = np.array(self._map[begin : begin + tokens * width * self._dtype.itemsize])
        if zlib.crc32(body.data) != checksum:
            raise DamagedFileError(f"{self.path} has changed since it was written")
        return torch.from_numpy(body).view(self._dtype).view(tokens, width)

    def _check_size(self) -> None:
        try:
            found = self.path.stat().st_size
        except OSError as error:
            raise DamagedFileError(f"{self.path} cannot be read ({error})") from error
        if found != self._size:
            raise DamagedFileError(f"{self.path} has {found} bytes of {self._size}")


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    try:
        with path.open("rb") as file:
            start = file.read(START)
            if len(start) != START or not start.startswith(MAGIC):
                raise DamagedFileError(f"{path} is no cache file")
            length = int.from_bytes(start[len(MAGIC) : -8], "little")
            raw = file.read(length if length <= path.stat().st_size else 0)
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read ({error})") from error
    if len(raw) != length or zlib.crc32(raw) != int.from_bytes(start[-8:], "little"):
        raise DamagedFileError(f"{path} is cut short or changed")
    return json.loads(raw), START + length
