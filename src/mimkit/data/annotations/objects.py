"""Objects in pictures: boxes, classes, outlines and joints of a set enter as arrays; an annotated set leaves.

All is held in NumPy arrays, one row an object: a set of a million objects is as cheap to hand to workers as one of ten.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mimkit.core.annotation import Annotation, DenseTask, Joints
from mimkit.core.errors import UserError
from mimkit.data.annotations.annotated import Annotated, SomeAnnotated
from mimkit.data.annotations.maps import same_shape
from mimkit.data.annotations.mended import few, note_of
from mimkit.data.annotations.outlines import Outlines
from mimkit.data.folders import Files
from mimkit.data.pictures import digest

ROUNDING = 1.0  # pixels that a box may leave its picture without a word


@dataclass(frozen=True, kw_only=True)
class ObjectTable:
    """N objects of n pictures, those of the first picture first."""

    sizes: np.ndarray
    """(n, 2) height and width of the pictures."""
    ends: np.ndarray
    """(n) where the objects of each picture end."""
    boxes: np.ndarray
    """(N, 4) float32: left, top, right, bottom in pixels of the picture."""
    labels: np.ndarray
    """(N) int64, classes from 0."""
    areas: np.ndarray
    """(N) float32, in pixels."""
    crowd: np.ndarray
    """(N) bool."""
    outlines: Outlines | None = None
    keypoints: np.ndarray | None = None
    """(N, J, 3) float32."""

    @property
    def owners(self) -> np.ndarray:
        """(N) the picture of each object."""
        return np.repeat(np.arange(len(self.ends)), np.diff(self.ends, prepend=0))

    @property
    def counts(self) -> np.ndarray:
        """(n) objects of each picture that are no crowd."""
        return np.bincount(self.owners[~self.crowd], minlength=len(self.ends))

    def of(self, i: int) -> tuple[int, int]:
        """The first object of a picture, and the first behind its last."""
        return int(self.ends[i - 1]) if i else 0, int(self.ends[i])

    def pick(self, pictures: Sequence[int]) -> "ObjectTable":
        """Of some pictures, in this order."""
        spans = [np.arange(*self.of(i)) for i in pictures]
        index = np.concatenate(spans) if spans else np.zeros(0, np.int64)
        ends = np.cumsum([len(span) for span in spans], dtype=np.int64)
        return replace(self._rows(index), sizes=self.sizes[list(pictures)], ends=ends)

    def where(self, good: np.ndarray) -> "ObjectTable":
        """Without the objects that are not good (N)."""
        counts = np.bincount(self.owners[good], minlength=len(self.ends))
        return replace(self._rows(np.flatnonzero(good)), ends=np.cumsum(counts))

    def _rows(self, index: np.ndarray) -> "ObjectTable":
        return replace(
            self,
            boxes=self.boxes[index],
            labels=self.labels[index],
            areas=self.areas[index],
            crowd=self.crowd[index],
            outlines=None if self.outlines is None else self.outlines.at(index),
            keypoints=None if self.keypoints is None else self.keypoints[index],
        )

    @property
    def fingerprint(self) -> str:
        """Changes when anything does."""
        arrays = [self.sizes, self.ends, self.boxes, self.labels, self.areas, self.crowd]
        arrays += [] if self.outlines is None else [self.outlines.buffer, self.outlines.ends]
        arrays += [] if self.keypoints is None else [self.keypoints]
        return digest(*(array.tobytes() for array in arrays))


class Objects(Annotated):
    """Pictures with objects: their boxes and classes, and where there are some their masks or joints."""

    def __init__(
        self,
        pictures: Files,
        table: ObjectTable,
        categories: tuple[str, ...],
        *,
        task: DenseTask = "detect",
        joints: Joints | None = None,
    ) -> None:
        super().__init__(pictures)
        self.table, self.categories, self.task, self.joints = table, categories, task, joints
        self.has_masks = table.outlines is not None

    def annotation(self, i: int) -> Annotation:
        table = self.table
        first, last = table.of(i)
        size = (int(table.sizes[i, 0]), int(table.sizes[i, 1]))
        masks = None if table.outlines is None else torch.from_numpy(table.outlines.masks(first, last, size))
        keypoints = None if table.keypoints is None else torch.from_numpy(table.keypoints[first:last].copy())
        return Annotation(
            size=size,
            boxes=torch.from_numpy(table.boxes[first:last].copy()),
            labels=torch.from_numpy(table.labels[first:last].copy()),
            masks=masks,
            keypoints=keypoints,
            areas=torch.from_numpy(table.areas[first:last].copy()),
            crowd=torch.from_numpy(table.crowd[first:last].copy()),
        )

    @property
    def taught(self) -> Annotated:
        """Pictures with an object that is no crowd, of detection; each person, of keypoints."""
        if self.task == "keypoints":
            from mimkit.data.annotations.people import People  # which knows this file

            return People(self)
        counts = torch.from_numpy(self.table.counts)
        return self if (counts > 0).all() else SomeAnnotated(self, counts.nonzero().flatten())

    @property
    def annotations_fingerprint(self) -> str:
        return digest(self.task, self.table.fingerprint, self.categories, self.joints)


def check_boxes(
    boxes: np.ndarray, sizes: np.ndarray, where: Callable[[int], str], bad_fraction: float
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Boxes (N, 4) inside of their pictures, which of them are good (N), and lines about the others.

    Args:
        boxes: left, top, right, bottom.
        sizes: (N, 2) height and width of each box's picture.
        where: names a box by its number.

    Raises UserError for boxes that are no numbers, and for too many broken ones.
    """
    finite = np.isfinite(boxes).all(1)
    if not finite.all():
        bad = np.flatnonzero(~finite).tolist()
        raise UserError(f"{len(bad):,} boxes are no numbers: {few(bad, where)}: mend them")
    height, width = sizes[:, 0].astype(float), sizes[:, 1].astype(float)
    limits = np.stack([width, height, width, height], 1)
    flat = (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])
    clipped = np.clip(boxes, 0, limits).astype(np.float32)
    outside = ~flat & ((clipped[:, 2] <= clipped[:, 0]) | (clipped[:, 3] <= clipped[:, 1]))
    notes = []
    for wrong, kind in ((flat, "boxes have no width or no height"), (outside, "boxes lie outside of their picture")):
        if wrong.any():
            notes.append(note_of(np.flatnonzero(wrong).tolist(), len(boxes), kind, where, bad_fraction))
    beyond = np.flatnonzero((np.abs(clipped - boxes).max(1, initial=0) > ROUNDING) & ~flat & ~outside).tolist()
    if beyond:
        notes.append(f"clipped: {len(beyond):,} boxes reach beyond their picture, as {few(beyond, where)}")
    return clipped, ~(flat | outside), notes


def check_listed(listed: np.ndarray, sizes: np.ndarray, where: Callable[[int], str]) -> list[str]:
    """Compare the sizes (n, 2) that annotations say with those of the pictures; 0 is not known; lines about it.

    Raises UserError where pictures are scaled or lie on their side: then all boxes are elsewhere.
    """

    def both(number: int) -> str:
        (rows, columns), (height, width) = listed[number], sizes[number]
        return f"{where(number)} ({columns}x{rows} listed, is {width}x{height})"

    differ = (listed > 0).all(1) & (sizes > 0).all(1) & (listed != sizes).any(1)
    turned = differ & (listed == sizes[:, ::-1]).all(1)
    scaled = differ & ~turned & same_shape(listed, sizes) & (np.abs(listed - sizes).max(1) > 2)
    for wrong, fix in (
        (turned, "they are turned as their EXIF says: turn their boxes too, or remove EXIF"),
        (scaled, "they were scaled: scale the annotations too, or give the original pictures"),
    ):
        if wrong.any():
            numbers = np.flatnonzero(wrong).tolist()
            raise UserError(
                f"{len(numbers):,} pictures have another size than their annotations: {few(numbers, both)}; {fix}"
            )
    numbers = np.flatnonzero(differ).tolist()
    if not numbers:
        return []
    return [f"{len(numbers):,} pictures have another size than listed, which counts: {few(numbers, both)}"]
