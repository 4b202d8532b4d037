"""Shards that are written: names and bytes of pictures enter a tar file; what lies where in it leaves."""

import os
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mimkit.data.folders import Paths
from mimkit.data.shards.index import Shard, probe
from mimkit.data.shards.tar import BLOCK, Window, ending, header, members, padding
from mimkit.data.stored import open_stored


@dataclass(frozen=True)
class Packed:
    """The pictures of a shard that is written."""

    shard: Shard
    names: Paths
    numbers: np.ndarray
    """In the set that was packed."""
    offsets: np.ndarray
    sizes: np.ndarray
    checksums: np.ndarray


class Writer:
    """A tar file that grows."""

    def __init__(self, partial: Path) -> None:
        self._partial, self.size = partial, 0
        self._file = open(partial, "wb")  # noqa: SIM115 - closed by finish

    def full(self, more: int, shard_mb: float) -> bool:
        """Whether a picture of so many bytes belongs into the next shard."""
        return self.size + BLOCK + more > shard_mb * 1e6

    def add(self, name: str, data: bytes) -> None:
        """Write a picture behind the others."""
        self.size += self._file.write(header(name, len(data)) + data + padding(len(data)))

    def finish(self, out: Path, name: str, announce: Callable[[str], None]) -> Packed:
        """End the file, put it where it belongs, and read it back."""
        with self._file:
            self._file.write(ending(self.size))
            self._file.flush()
            os.fsync(self._file.fileno())
        os.replace(self._partial, out / name)
        settle(out)
        packed = read_back(out, name)
        announce(f"{name}: {len(packed.numbers):,} pictures, {packed.shard.size / 1e6:,.0f} MB")
        return packed


def settle(folder: Path) -> None:
    """Let a renamed file outlast a loss of power."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def read_back(out: Path, name: str) -> Packed:
    """The pictures of a shard that was written. Raises UserError, OSError."""
    file = open_stored(str(out / name))
    content = list(members(Window(file)))
    checksums = [zlib.crc32(file.read(member.offset, member.size)) for member in content]
    offsets = np.array([member.offset for member in content], np.int64)
    places = tuple(int(offsets[place]) - BLOCK for place in sorted({0, len(content) // 2, len(content) - 1}))
    # No version: it has a time in it, which no interruption may change.
    shard = Shard(name, file.size, "", places, probe(file, places))
    return Packed(
        shard=shard,
        names=Paths.pack([member.name for member in content]),
        numbers=np.array([int(re.findall(rb"(\d+)\.\w+$", member.name)[0]) for member in content], np.int64),
        offsets=offsets,
        sizes=np.array([member.size for member in content], np.int64),
        checksums=np.array(checksums, np.uint32),
    )
