"""Verification of a set in shards: an index enters; what is not as it says, and copies among the pictures, leave."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mimkit.core.errors import UserError
from mimkit.data.header import BadPicture
from mimkit.data.pictures import digest
from mimkit.data.reading import Reading
from mimkit.data.shards.index import Index, open_index
from mimkit.data.shards.others import clean
from mimkit.data.shards.shards import Shards, index_file, open_shard
from mimkit.data.shards.tar import Window, members
from mimkit.data.stream import stream

_AT_ONCE = 256  # pictures that a worker reads one after the other


@dataclass(frozen=True)
class Checked:
    """What came of a stretch of pictures, or of a shard."""

    bad: list[tuple[str, str]] = field(default_factory=list)
    """Where something is wrong, and what."""
    digests: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    """Of the bytes of each picture of a stretch."""


def check_shards(place: str, reading: Reading = Reading(), *, workers: int = 0) -> dict[str, Any]:
    """Compare each shard with the index, decode every picture, and look for copies.

    Args:
        place: an index, or a folder that holds one.
        reading: how files become pictures.
        workers: processes that do so.

    Raises UserError where there is no index, or one that is damaged.
    """
    file = index_file(place)
    if file is None:
        raise UserError(f"{place} holds no index: write one with 'mimkit shards index {place}'")
    index = open_index(file)
    shards = list(stream(_CompareShard(index), len(index.about.shards), workers))
    bad = [entry for checked in shards for entry in checked.bad]
    broken = {number for number, checked in enumerate(shards) if checked.bad}
    pictures = _Damaged(place, index, 0, len(index), reading)
    rows = np.concatenate([index.of_shard(number) for number in range(len(shards)) if number not in broken] or [[]])
    rows = np.sort(rows.astype(np.int64))
    digests, readable = [], len(rows)
    for checked in stream(_Decode(pictures, rows), -(-len(rows) // _AT_ONCE), workers):
        bad += checked.bad
        readable -= len(checked.bad)
        digests.append(checked.digests)
    copies = list(_copies(pictures, rows, np.concatenate(digests) if digests else np.empty(0, np.uint64)))
    return {
        "index": file,
        "shards": len(shards),
        "pictures": len(index),
        "readable": readable,
        "bad": [{"where": where, "reason": reason} for where, reason in bad],
        "copies": copies,
        "left_out": list(index.about.left_out),
    }


class _Damaged(Shards):
    """A set of which some shards cannot be read: their pictures are bad ones."""

    def data(self, i: int) -> bytes:
        try:
            return super().data(i)
        except UserError as error:
            raise OSError(0, str(error)) from None


@dataclass(frozen=True)
class _CompareShard:
    """Number of a shard -> how it differs from the index. For workers."""

    index: Index

    def __call__(self, i: int) -> Checked:
        place, rows = self.index.place(i), self.index.rows
        try:
            window = Window(open_shard(self.index, i))
            present = {member.offset: member for member in members(window) if member.regular}
        except (UserError, OSError) as error:
            return Checked([(place, str(error))])
        bad = []
        for row in self.index.of_shard(i).tolist():
            member = present.get(int(rows.offset[row]))
            same = member is not None and (clean(member.name), member.size) == (rows.names[row], int(rows.size[row]))
            if not same:
                name = rows.names[row].decode(errors="replace")
                bad.append((f"{place}/{name}", "the shard holds something else where the index has it"))
        return Checked(bad)


@dataclass(frozen=True)
class _Decode:
    """Number of a stretch -> which of its pictures cannot be read, and digests of all. For workers."""

    pictures: Shards
    rows: np.ndarray

    def __call__(self, i: int) -> Checked:
        here = self.rows[i * _AT_ONCE : (i + 1) * _AT_ONCE]
        bad, digests = [], np.zeros(len(here), np.uint64)
        for place, row in enumerate(here.tolist()):
            try:
                data = self.pictures.stored(row)
                digests[place] = int(digest(data)[:16], 16)
                self.pictures.read(row)
            except BadPicture as error:
                bad.append((self.pictures.where(row), str(error)))
        return Checked(bad, digests)


def _copies(pictures: Shards, rows: np.ndarray, digests: np.ndarray) -> Iterator[list[str]]:
    """Where pictures of equal bytes lie, copy beside copy."""
    order = digests.argsort(kind="stable")
    first = np.flatnonzero(np.diff(digests[order], prepend=0) != 0)
    ends = np.append(first[1:], len(order))
    for begin, end in zip(first[ends - first > 1], ends[ends - first > 1], strict=True):
        if digests[order[begin]]:
            yield [pictures.where(int(rows[place])) for place in np.sort(order[begin:end])]
