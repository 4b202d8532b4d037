"""Depths of pixels: pictures and maps of stored numbers enter; an annotated set in meters leaves, NaN where unknown."""

import os

import numpy as np
import torch

from mimkit.core.annotation import Annotation
from mimkit.core.errors import UserError
from mimkit.data.annotations import maps
from mimkit.data.annotations.annotated import Annotated
from mimkit.data.annotations.mended import leave_out
from mimkit.data.annotations.pairs import Pairs
from mimkit.data.annotations.remembered import Arrays, in_threads, remembered
from mimkit.data.folders import Files
from mimkit.data.header import BadPicture
from mimkit.data.pictures import digest
from mimkit.data.reading import Reading

MILLIMETERS = 1000.0  # stored units of a meter in 16-bit files, where nothing says otherwise
KITTI = 256.0


class Depths(Annotated):
    """Pictures with the depth of each pixel."""

    task = "depth"

    def __init__(self, pictures: Files, files: Files, scale: float | None) -> None:
        """`scale`: stored units of a meter; None: 1 for fractions, 1000 for whole numbers."""
        super().__init__(pictures)
        self._files, self._scale = files, scale

    def annotation(self, i: int) -> Annotation:
        size = self.size(i)
        depth = maps.resized(meters(maps.read_values(self._files.path(i)), self._scale), size)
        return Annotation(size=size, depth=torch.from_numpy(np.ascontiguousarray(depth)))

    @property
    def annotations_fingerprint(self) -> str:
        return digest(self._files.fingerprint, self._scale)


def meters(stored: np.ndarray, scale: float | None) -> np.ndarray:
    """(H, W) float32 meters of stored values; NaN where they are 0, negative or not finite.

    Raises BadPicture for colors, and for 8-bit values of which no scale was named.
    """
    if stored.ndim != 2:
        raise BadPicture("holds colors, not depths: save depths as 16-bit PNG in millimeters, or as .npy in meters")
    if stored.dtype == np.uint8 and scale is None:
        raise BadPicture("holds 8-bit values, of which nobody knows the unit: give --depth-scale, stored units a meter")
    if scale is None:
        scale = 1.0 if stored.dtype.kind == "f" else MILLIMETERS
    with np.errstate(invalid="ignore", over="ignore"):
        depth = (stored / scale).astype(np.float32)
        return np.where((depth > 0) & np.isfinite(depth), depth, np.float32(np.nan))


def open_depths(pairs: Pairs, reading: Reading, scale: float | None, bad_fraction: float) -> tuple[Depths, Depths]:
    """Both splits of a set of pairs.

    Args:
        scale: stored units of a meter; None: as the folder says (KITTI: 256), else millimeters or meters by the type.

    Raises UserError.
    """
    if scale is None and any(b"groundtruth_depth/" in path or b"proj_depth/" in path for path in pairs.labels):
        scale = KITTI
    if scale is not None and not scale > 0:
        raise UserError(f"--depth-scale is a number of stored units a meter, above 0; got {scale}")
    sizes, reasons = _check(pairs.files(range(len(pairs.images))), scale)
    bad = np.flatnonzero(reasons != "").tolist()
    kinds = set(reasons[bad].tolist())
    if len(bad) == len(reasons) and len(kinds) == 1:
        raise UserError(f"every depth map, as {os.fsdecode(pairs.labels[0])}, {kinds.pop()}")
    rest = leave_out(pairs, bad, reasons.tolist(), "depth maps cannot be used", bad_fraction)
    good = sizes[reasons == ""]
    pictures = rest.pictures(range(len(rest.images)), reading)
    notes = maps.check_sizes(maps.header_sizes(pictures), good, rest.files(range(len(rest.images))), "depth maps")
    train = Depths(rest.pictures(rest.train, reading), rest.files(rest.train), scale)
    test = Depths(rest.pictures(rest.test, train.whole.resolved), rest.files(rest.test), scale)
    train.notes += notes
    return train, test


def _check(files: Files, scale: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Size of each map (n, 2), and why it cannot be used, else an empty text (n)."""
    paths = [files.path(number) for number in range(len(files))]

    def look(path: bytes) -> tuple[tuple[int, int], str]:
        try:
            stored = maps.read_values(path)
            depth = meters(stored, scale)
        except BadPicture as error:
            return (0, 0), str(error)
        return depth.shape, "" if np.isfinite(depth).any() else "holds no depth: all is unknown"

    def look_at_all() -> Arrays:
        rows = in_threads(look, paths)
        sizes = np.array([size for size, _ in rows], np.int32).reshape(-1, 2)
        return {"sizes": sizes, "reasons": np.array([reason for _, reason in rows], str)}

    arrays = remembered(f"depths 1 {scale}", paths, look_at_all)
    return arrays["sizes"], arrays["reasons"]
