"""Outlines of objects: COCO's polygons and run lengths enter; compressed run lengths are held, masks leave.

Masks are those of pycocotools to the pixel, whose rule for polygons everyone measures by.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mimkit.core.errors import missing_extra
from mimkit.data.annotations.maps import resized, same_shape


class BadOutline(Exception):
    """An outline that is none. The message is a short reason."""


def coco_masks() -> Any:
    """The module that draws and reads masks. Raises UserError where it is not installed."""
    try:
        from pycocotools import mask
    except ImportError:
        raise missing_extra("reading masks of COCO", "detect") from None
    return mask


def can_draw() -> bool:
    """Whether pycocotools is there."""
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError:
        return False
    return True


@dataclass(frozen=True)
class Outlines:
    """Compressed run lengths of many masks in one buffer, each of the size of its picture."""

    buffer: np.ndarray
    """(bytes) uint8."""
    ends: np.ndarray
    """(N) where each ends."""

    @staticmethod
    def pack(texts: Sequence[bytes]) -> "Outlines":
        """Run lengths end to end."""
        ends = np.cumsum(np.fromiter((len(text) for text in texts), np.int64, len(texts)))
        return Outlines(np.frombuffer(b"".join(texts), np.uint8), ends)

    def __getitem__(self, number: int) -> bytes:
        start = self.ends[number - 1] if number else 0
        return self.buffer[start : self.ends[number]].tobytes()

    def at(self, index: np.ndarray) -> "Outlines":
        """Of some objects, by number."""
        return Outlines.pack([self[number] for number in index.tolist()])

    def masks(self, first: int, last: int, size: tuple[int, int]) -> np.ndarray:
        """Masks (n, H, W) bool of objects in a row; `last` is not among them."""
        if first == last:
            return np.zeros((0, *size), bool)
        runs = [{"size": list(size), "counts": self[number]} for number in range(first, last)]
        return np.ascontiguousarray(coco_masks().decode(runs).transpose(2, 0, 1)).view(bool)


def outline(segmentation: Any, size: tuple[int, int], listed: tuple[int, int]) -> tuple[bytes, int, int]:
    """What COCO's `segmentation` holds, as compressed run lengths of a mask of a picture.

    Args:
        size: height and width of the picture.
        listed: the same as the file of annotations says.

    Returns its run lengths, its pixels, and how many polygons of fewer than three points were left out.

    Raises BadOutline; UserError where pycocotools is not installed.
    """
    if isinstance(segmentation, dict):
        runs, dropped = _of_runs(segmentation, size, listed), 0
    elif isinstance(segmentation, list):
        runs, dropped = _of_polygons(segmentation, size)
    else:
        raise BadOutline("no outline")
    return runs["counts"], int(coco_masks().area(runs)), dropped


def _of_polygons(polygons: list[Any], size: tuple[int, int]) -> tuple[dict[str, Any], int]:
    good = [polygon for polygon in polygons if isinstance(polygon, list) and len(polygon) >= 6]
    if not good:
        raise BadOutline("no polygon of three points")
    if any(len(polygon) % 2 for polygon in good):
        raise BadOutline("a polygon of an odd number of coordinates")
    values = [value for polygon in good for value in polygon]
    if not {type(value) for value in values} <= {int, float}:
        raise BadOutline("a polygon of something else than numbers")
    # Far outside, drawing would take a buffer as long as the way there. NaN is not near either.
    if not all(abs(value) <= 10 * max(size) + 1000 for value in values):
        raise BadOutline("a polygon far outside of the picture")
    masks = coco_masks()
    return masks.merge(masks.frPyObjects(good, *size)), len(polygons) - len(good)


def _of_runs(segmentation: dict[str, Any], size: tuple[int, int], listed: tuple[int, int]) -> dict[str, Any]:
    counts, own = segmentation.get("counts"), segmentation.get("size")
    own = list(listed) if own is None else own
    whole = isinstance(own, list) and len(own) == 2 and all(isinstance(side, int) and side > 0 for side in own)
    if not whole:
        raise BadOutline("run lengths without a size")
    try:
        text = counts.encode() if isinstance(counts, str) else counts
        runs = counts if isinstance(counts, list) else run_lengths(text if isinstance(text, bytes) else b"")
        total = sum(runs) if all(isinstance(run, int) and run >= 0 for run in runs) else -1
    except (TypeError, ValueError):
        raise BadOutline("run lengths that cannot be read") from None
    if total != own[0] * own[1]:
        raise BadOutline("run lengths that do not fill their size")
    masks = coco_masks()
    if isinstance(counts, list):
        encoded = masks.frPyObjects({"size": own, "counts": counts}, *own)
    else:
        encoded = {"size": own, "counts": text}
    if tuple(own) == size:
        return encoded
    if not same_shape(np.array(size), np.array(own)):
        raise BadOutline(f"a mask of {own[1]}x{own[0]} for a picture of {size[1]}x{size[0]}")
    return masks.encode(np.asfortranarray(resized(masks.decode(encoded), size)))


def run_lengths(text: bytes) -> list[int]:
    """Run lengths of COCO's compressed text: six bits a character from '0' on, differences to the last but one.

    Raises ValueError for other text.
    """
    runs: list[int] = []
    place = 0
    while place < len(text):
        value, shift, more = 0, 0, True
        while more:
            if place == len(text) or not 48 <= text[place] < 112:
                raise ValueError("no run lengths")
            bits = text[place] - 48
            value |= (bits & 0x1F) << shift
            more, shift, place = bool(bits & 0x20), shift + 5, place + 1
            if not more and bits & 0x10:
                value |= -1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs
