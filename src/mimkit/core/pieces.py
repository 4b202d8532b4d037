"""Pieces: blocks of tensors enter; a file of safetensors leaves, and any block of a tensor from several such files.

torch.distributed.checkpoint's HuggingFaceStorageReader reads the same files.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from mimkit.core.files import open_regular
from mimkit.core.integrity import Damaged, sha256

OFFSETS = "DCP_SHARDING_INFO"  # torch's name for where pieces begin


@dataclass(frozen=True)
class Piece:
    """A block of a tensor, on the CPU."""

    values: Tensor
    offset: tuple[int, ...]
    """Where it begins in the whole tensor, along each axis."""


def write_pieces(path: Path, pieces: Mapping[str, Piece]) -> str:
    """Write pieces by the names of their tensors and flush them to disk; returns the file's checksum.

    Raises OSError when the disk is full or not writable.
    """
    offsets = {name: {"saved_offsets": list(piece.offset)} for name, piece in pieces.items()}
    about = {"format": "pt", "DCP_VERSION": "1.0", OFFSETS: json.dumps(offsets)}
    content = save({name: piece.values for name, piece in pieces.items()}, about)
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


class Pieces:
    """Files of pieces in a folder, open to be read. A file is verified before anything of it is used.

    Args:
        sums: the checksum of each file, by its name.

    Raises:
        OSError, SafetensorError: a file cannot be read.
    """

    def __init__(self, folder: Path, sums: Mapping[str, str]) -> None:
        self.sums = {folder / Path(name).name: checksum for name, checksum in sums.items()}
        self.verified: set[Path] = set()
        self.files: dict[Path, Any] = {}
        self.places: dict[str, list[tuple[Path, list[int], list[int]]]] = {}  # file, offset and shape of each piece
        for path in self.sums:
            open_regular(path).close()  # a pipe would be waited for
            self.files[path] = file = safe_open(path, "pt")
            offsets = json.loads(file.metadata()[OFFSETS])
            for name in file.keys():  # noqa: SIM118  it is no dict
                place = (path, offsets[name]["saved_offsets"], file.get_slice(name).get_shape())
                self.places.setdefault(name, []).append(place)

    def read(self, name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        """A block of a tensor.

        Raises:
            Damaged: a file is not the one that was written, or pieces of the block are missing.
        """
        result, filled = None, 0
        for path, start, size in self.places[name]:
            low = [max(a, b) for a, b in zip(offset, start, strict=True)]
            high = [min(a + n, b + m) for a, n, b, m in zip(offset, shape, start, size, strict=True)]
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            self._verify(path)
            file = self.files[path]
            values = file.get_slice(name)[_slices(low, high, start)] if size else file.get_tensor(name)
            result = torch.empty(shape, dtype=values.dtype) if result is None else result
            result[_slices(low, high, offset)] = values
            filled += values.numel()
        if result is None:  # without elements
            result = torch.empty(shape, dtype=self.files[self.places[name][0][0]].get_slice(name)[:0].dtype)
        if filled != result.numel():
            raise Damaged(f"{name} is not complete")
        return result

    def _verify(self, path: Path) -> None:
        if path not in self.verified:
            if sha256(path) != self.sums[path]:
                raise Damaged(f"checksum of {path.name}")
            self.verified.add(path)


def _slices(low: list[int], high: list[int], origin: tuple[int, ...] | list[int]) -> tuple[slice, ...]:
    return tuple(slice(a - o, b - o) for a, b, o in zip(low, high, origin, strict=True))
