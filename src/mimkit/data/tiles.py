"""Tiles: pictures that are much larger than a crop enter, each of their tiles as a picture of its own leaves."""

from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Int64
from torch import Tensor

from mimkit.core.memory import cores
from mimkit.data.header import BadPicture
from mimkit.data.pictures import Pictures, digest
from mimkit.data.values import Storage, Values


class Tiled(Pictures):
    """Every picture of a set in tiles of its own resolution, row by row.

    Tiles cover the picture: as few as suffice, evenly spread, so that neighbors overlap where the sides do not divide.
    A picture smaller than a tile is one. Labels are those of the picture.
    """

    owners: Int64[Tensor, " n"]  # type: ignore[bad-override]

    def __init__(self, whole: Pictures, side: int) -> None:
        self.whole, self.side = whole, side
        self.name, self.notes, self.has_test, self.reading = whole.name, whole.notes, whole.has_test, whole.reading
        self.remote = whole.remote
        with ThreadPoolExecutor(cores()) as pool:  # headers wait for the disk
            sizes = list(pool.map(self._size, range(len(whole))))
        boxes = [tiles(height, width, side) for height, width in sizes]
        counts = torch.tensor([len(places) for places in boxes])
        self.owners = torch.arange(len(whole)).repeat_interleave(counts)
        self._boxes = torch.cat(boxes)
        self.set_labels(whole.get_labels().at(self.owners))

    def _size(self, i: int) -> tuple[int, int]:
        try:
            return self.whole.size(i)
        except BadPicture:  # its one tile is a bad picture when it is read
            return self.side, self.side

    def __len__(self) -> int:
        return len(self._boxes)

    @property
    def storage(self) -> Storage:
        return self.whole.storage

    @property
    def values(self) -> Values:
        return self.whole.values

    @property
    def fingerprint(self) -> str:
        return digest("tiles", self.side, self.whole.fingerprint)

    def read(self, i: int) -> Tensor:
        row, column, height, width = self._boxes[i].tolist()
        return self.whole.read_box(int(self.owners[i]), (row, column, height, width))

    def size(self, i: int) -> tuple[int, int]:
        _, _, height, width = self._boxes[i].tolist()
        return height, width

    def where(self, i: int) -> str:
        row, column, _, _ = self._boxes[i].tolist()
        return f"{self.whole.where(int(self.owners[i]))} at {column},{row}"


def tiles(height: int, width: int, side: int) -> Int64[Tensor, "n 4"]:
    """Boxes (row, column, height, width) of the tiles of a picture."""
    tops, lefts = (_starts(length, side) for length in (height, width))
    places = torch.cartesian_prod(tops, lefts)
    sides = torch.tensor([min(side, height), min(side, width)]).expand(len(places), 2)
    return torch.cat([places.view(-1, 2), sides], dim=1)


def _starts(length: int, side: int) -> Int64[Tensor, " n"]:
    """Where tiles begin along an axis."""
    count = max(1, -(-length // side))
    if count == 1:
        return torch.zeros(1, dtype=torch.int64)
    return torch.arange(count) * (length - side) // (count - 1)
