"""TIFF files through tifffile: bytes enter, their size, planes and values (channels first) leave."""

import io
from collections.abc import Generator
from contextlib import contextmanager
from io import BufferedIOBase
from typing import Any, cast

import numpy as np
from PIL import Image

from mimkit.core.errors import missing_extra
from mimkit.data.header import BadPicture, Header, check_size
from mimkit.data.reading import Reading

_ORIENTATION, _EXTRA_SAMPLES, _PHOTOMETRIC, GDAL_NODATA = 0x0112, 338, 262, 42113  # tags
_PALETTE, _SEPARATED = 3, 5  # photometric kinds that are converted to red, green and blue when they are read
_JPEG = (6, 7, 33007, 34892)  # compressions
Box = tuple[int, int, int, int]  # row, column, height, width in pixels
LARGEST = 1 << 32  # bytes of the pages that one picture needs


def is_tiff(data: bytes) -> bool:
    """Whether these bytes begin like a TIFF file, classic or big."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class Layout:
    """Which pages of an opened file are the picture, and which of their axes are what.

    Y and X are the picture, C and S its channels. Any other axis is a stack, of which `reading.plane` is one plane;
    planes are counted through all such axes in order. Axes are those of the file's own notes (OME, ImageJ), or of
    `reading.axes` where those are wrong.

    Raises BadPicture for a stack of which nobody said which plane is meant, and for axes that do not fit.
    """

    def __init__(self, file: Any, reading: Reading) -> None:
        self.file, self.series = file, file.series[0]
        self.page, self.tags = file.pages.first, file.pages.first.tags
        self.shape, self.axes = tuple(self.series.shape), self.series.axes
        if reading.axes is not None:
            if len(reading.axes) != len(self.shape) or not {"Y", "X"} <= set(reading.axes):
                raise BadPicture(
                    f"has {len(self.shape)} axes {self.shape}, which images.axes {reading.axes} does not fit"
                )
            self.axes = reading.axes
        if not {"Y", "X"} <= set(self.axes):
            raise BadPicture(f"has the axes {self.axes}: none of them are Y and X; say which with --images.axes")
        # Pages without a stated meaning are channels where so many channels were asked for.
        if reading.channels not in (None, 1, 3):
            for letter in "QI":
                if letter in self.axes and self.shape[self.axes.index(letter)] == reading.channels:
                    self.axes = self.axes.replace(letter, "C")
        self.stacked = [i for i, axis in enumerate(self.axes) if axis not in "YXCS" and self.shape[i] > 1]
        self.planes = int(np.prod([self.shape[i] for i in self.stacked]))
        self.alpha = _has_alpha(self.tags.valueof(_EXTRA_SAMPLES, 0))
        self.plane = reading.plane or 0
        if self.planes > 1 and reading.plane is None:
            raise BadPicture(
                f"is a stack of {self.planes} planes (axes {self.axes}): give --images.plane 0, or "
                f"--images.axes {self.axes.replace(self.axes[self.stacked[0]], 'C')} if they are channels"
            )
        if self.plane >= self.planes:
            raise BadPicture(f"has {self.planes} planes, none is number {self.plane}: lower --images.plane")

    def side(self, axis: str) -> int:
        """Length of an axis, 1 where there is none."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    @property
    def samples(self) -> int:
        """Channels of the picture, alpha not counted."""
        if self.tags.valueof(_PHOTOMETRIC) in (_PALETTE, _SEPARATED):
            return 3
        samples = self.side("S") * self.side("C")
        return samples - 1 if self.alpha and samples in (2, 4) else samples

    @property
    def orientation(self) -> int:
        """EXIF's number, 1 to 8."""
        return self.tags.valueof(_ORIENTATION, 1)

    @property
    def nodata(self) -> float | None:
        """What GDAL's tag says stands for no data."""
        text = self.tags.valueof(GDAL_NODATA)
        try:
            return None if text is None else float(str(text).strip().rstrip("\0"))
        except ValueError:
            return None

    def values(self, box: Box | None = None) -> np.ndarray:
        """The samples (C, H, W) of the plane, or of a box of it, alpha dropped; only what they need is read."""
        outer = len(self.shape) - len(self.page.shape)
        places = list(np.unravel_index(self.plane, [self.shape[i] for i in self.stacked])) if self.stacked else []
        index: list[Any] = [slice(None)] * len(self.shape)
        for i, axis in enumerate(self.axes):
            if axis not in "YXCS":
                index[i] = int(places[self.stacked.index(i)]) if i in self.stacked else 0
        paged = (
            outer > 0
            and self.shape[outer:] == tuple(self.page.shape)
            and len(self.series) == np.prod(self.shape[:outer])
        )
        if paged:
            numbers = np.arange(len(self.series)).reshape(self.shape[:outer])[tuple(index[:outer])]
            pages = [self._page(self.series.pages[int(number)], self.axes[outer:], box) for number in numbers.flat]
            values = np.stack(pages).reshape(*numbers.shape, *pages[0].shape)
            values = values[(slice(None),) * numbers.ndim + tuple(index[outer:])]
        elif outer == 0 and len(self.series) == 1:
            values = self._page(self.page, self.axes, box)[tuple(index)]
        else:
            self._bound(self.series.nbytes)
            values = self.series.asarray()[_boxed(self.axes, box)][tuple(index)]
        axes = [axis for axis in self.axes if axis in "YXCS"]
        # Samples and channels both mean color; whichever there are become the first axis.
        values = values.transpose([axes.index(axis) for axis in "SCYX" if axis in axes])
        values = values.reshape(-1, *values.shape[-2:])
        return values[:-1] if self.alpha and len(values) in (2, 4) else values

    def _page(self, page: Any, axes: str, box: Box | None) -> np.ndarray:
        """A page, or a box of it: of tiles and strips only those that it touches."""
        try:
            if box is not None and axes.replace("C", "S") in ("YX", "YXS", "SYX"):
                return page_box(page, box)
            self._bound(page.nbytes)
            return page.asarray()[_boxed(axes, box)]
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            return _by_pillow(page)[_boxed(axes, box)]

    def _bound(self, size: int) -> None:
        if size > LARGEST:
            raise BadPicture(f"takes {size / 1e9:.1f} GB of memory: cut it into smaller pictures")


@contextmanager
def opened(data: bytes | BufferedIOBase, reading: Reading) -> Generator[Layout]:
    """The layout of a file, from its bytes or from a handle that reads what is needed.

    Raises BadPicture; UserError when tifffile is not installed.
    """
    try:
        import tifffile
    except ImportError:
        raise missing_extra("reading this kind of TIFF file", "tiff") from None
    with tifffile.TiffFile(cast(Any, io.BytesIO(data) if isinstance(data, bytes) else data)) as file:
        yield Layout(file, reading)


def tiff_header(data: bytes | BufferedIOBase, reading: Reading) -> Header | None:
    """What a TIFF file says about itself; None when tifffile is not installed, so that Pillow answers."""
    try:
        import tifffile  # noqa: F401
    except ImportError:
        return None
    try:
        with opened(data, reading) as layout:
            height, width = layout.side("Y"), layout.side("X")
            turned = layout.orientation in (5, 6, 7, 8)
            dtype = layout.series.dtype.name
            about = Header(height, width, layout.samples, dtype, layout.nodata, layout.planes, layout.axes)
    except BadPicture:
        raise
    except Exception as error:
        raise BadPicture("not a TIFF file that can be read") from error
    check_size(width, height, whole=reading.tile is None)
    return about._replace(height=width, width=height) if turned else about


def _boxed(axes: str, box: Box | None) -> tuple[slice, ...]:
    """What cuts a box out of an array with these axes."""
    row, column, height, width = box or (0, 0, None, None)
    spans = {"Y": slice(row, height and row + height), "X": slice(column, width and column + width)}
    return tuple(spans.get(axis, slice(None)) for axis in axes)


def page_box(page: Any, box: Box) -> np.ndarray:
    """A box of a page, (H, W), (H, W, S) or, of samples in planes, (S, H, W); no other tile or strip is decoded."""
    row, column, height, width = box
    file, shape = page.parent.filehandle, page.shaped  # separate samples, depth, length, width, samples
    raw = page.compression == page.predictor == page.fillorder == 1 and page.bitspersample % 8 == 0
    if raw and page.is_contiguous:  # one stretch of numbers, of which rows are read
        dtype = np.dtype(page.parent.byteorder + page.dtype.char)
        size = shape[3] * shape[4] * dtype.itemsize
        values = np.empty((shape[0], height, width, shape[4]), dtype)
        for plane in range(shape[0]):
            file.seek(page.dataoffsets[0] + (plane * shape[2] + row) * size)
            rows = np.frombuffer(file.read(height * size), dtype).reshape(height, shape[3], shape[4])
            values[plane] = rows[:, column : column + width]
        return _squeezed(values.astype(page.dtype), page)
    down, across = page.chunks[:2] if shape[0] == 1 or page.planarconfig == 1 else page.chunks[-2:]
    lines, columns = -(-shape[2] // down), -(-shape[3] // across)
    values = np.zeros((shape[0], height, width, shape[4]), page.dtype)
    tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if page.compression in _JPEG else {}
    for plane in range(shape[0]):
        for line in range(row // down, -(-(row + height) // down)):
            for piece_column in range(column // across, -(-(column + width) // across)):
                number = (plane * lines + line) * columns + piece_column
                file.seek(page.dataoffsets[number])
                piece, (_, _, y, x, _), size = page.decode(file.read(page.databytecounts[number]), number, **tables)
                y0, x0 = max(y, row), max(x, column)
                y1, x1 = min(y + size[1], row + height), min(x + size[2], column + width)
                if piece is not None and y0 < y1 and x0 < x1:
                    into = values[plane, y0 - row : y1 - row, x0 - column : x1 - column]
                    into[:] = piece[0, y0 - y : y1 - y, x0 - x : x1 - x]
    return _squeezed(values, page)


def _by_pillow(page: Any) -> np.ndarray:
    """A page whose compression tifffile leaves to another package, if Pillow gives the very values that it says."""
    file = page.parent.filehandle
    file.seek(0)
    with Image.open(io.BytesIO(file.read()), formats=["TIFF"]) as picture:
        picture.seek(page.index)
        values = np.asarray(picture)
    if values.dtype != page.dtype or values.shape != page.shape:
        raise BadPicture(f"is compressed by {page.compression.name}: pip install imagecodecs")
    return values


def _squeezed(values: np.ndarray, page: Any) -> np.ndarray:
    """(planes, H, W, samples) in the axes of the page."""
    if len(page.shape) == 2:
        return values[0, :, :, 0]
    return values[..., 0] if page.planarconfig == 2 else values[0]


def _has_alpha(extra_samples: int | tuple[int, ...]) -> bool:
    return any(kind in (1, 2) for kind in np.atleast_1d(extra_samples))
