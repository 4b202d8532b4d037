"""TIFF files through tifffile: bytes enter, their size, planes and values (channels first) leave."""

import io
import zlib
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from io import BufferedIOBase
from typing import Any, cast

import numpy as np
from PIL import Image

from mimkit.core.errors import missing_extra
from mimkit.data.header import LARGEST, BadPicture, Header, check_inflated, check_size
from mimkit.data.reading import Reading

_ORIENTATION, _EXTRA_SAMPLES, _PHOTOMETRIC, GDAL_NODATA = 0x0112, 338, 262, 42113  # tags
_WHITE_IS_ZERO, _PALETTE = 0, 3  # photometric kinds, as these
_INKS, _YCBCR = 5, 6
_CONVERTED = {_INKS: "CMYK", _YCBCR: "YCbCr", 8: "CIELAB", 9: "ICCLAB", 10: "ITULAB", 32844: "LogL", 32845: "LogLuv"}
"""What is no red, green and blue, and what people call it. JPEG files among them become that when they are decoded."""
_JPEG = (6, 7, 33007, 34892)  # compressions
_DEFLATE, _LZMA = (8, 32946), 34925
_RATIO = {**dict.fromkeys(_DEFLATE, 1032), _LZMA: 7000}  # bytes that one byte of a compression can become
_UNUSUAL = 1 << 28  # bytes that a strip or tile might become, from which it is looked at first
Box = tuple[int, int, int, int]  # row, column, height, width in pixels


def is_tiff(data: bytes) -> bool:
    """Whether these bytes begin like a TIFF file, classic or big."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class OnlyWhole(BadPicture):
    """What tifffile cannot turn into numbers by itself; Pillow may, picture by picture."""


class Layout:
    """Which pages of an opened file are the picture, and which of their axes are what.

    Y and X are the picture, C and S its channels. Any other axis is a stack, of which `reading.plane` is one plane;
    planes are counted through all such axes in order. Axes are those of the file's own notes (OME, ImageJ), or of
    `reading.axes` where those are wrong. Of pictures of different sizes in a file, as the levels of a pyramid and the
    label of a slide, the first that is not a reduced copy is meant; of the same size they are a stack.

    Raises BadPicture for a stack of which nobody said which plane is meant, and for axes that do not fit.
    """

    def __init__(self, file: Any, reading: Reading) -> None:
        full = [series for series in file.series if not series.keyframe.is_reduced] or file.series
        first = full[0]
        alike = [series for series in full if (series.shape, series.dtype) == (first.shape, first.dtype)]
        self.plane = reading.plane or 0
        # Files that were written page by page note each page by itself.
        self.copies = len(alike)
        self.series = alike[self.plane % self.copies] if self.copies > 1 else first
        self.page = self.series.keyframe
        self.tags = self.page.tags
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
        inner = int(np.prod([self.shape[i] for i in self.stacked]))
        self.planes = inner * self.copies
        self.alpha = _has_alpha(self.tags.valueof(_EXTRA_SAMPLES, 0))
        if self.planes > 1 and reading.plane is None:
            raise BadPicture(f"is a stack of {self.planes} planes{self._hint()}")
        if self.plane >= self.planes:
            raise BadPicture(f"has {self.planes} planes, none is number {self.plane}: lower --images.plane")
        self.plane //= self.copies

    def _hint(self) -> str:
        """What to do with a stack."""
        if not self.stacked:
            return ": give --images.plane 0"
        hint = f" (axes {self.axes}): give --images.plane 0"
        if {"C", "S"} & set(self.axes):
            return hint
        return f"{hint}, or --images.axes {self.axes.replace(self.axes[self.stacked[0]], 'C')} if they are channels"

    def side(self, axis: str) -> int:
        """Length of an axis, 1 where there is none."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    @property
    def kind(self) -> int:
        """TIFF's number of what values mean: gray, white is zero, colors, a palette, inks."""
        return int(self.page.photometric)

    @property
    def dtype(self) -> str:
        """NumPy's name of the type of the values; colors of a palette have 8 bits."""
        return "uint8" if self.kind == _PALETTE and self.series.dtype.kind == "u" else self.series.dtype.name

    @property
    def samples(self) -> int:
        """Channels of the picture, alpha not counted."""
        if self.kind in (_PALETTE, _INKS):
            return 3
        samples = self.side("S") * self.side("C")
        return samples - 1 if self.alpha and samples in (2, 4) else samples

    @property
    def orientation(self) -> int:
        """EXIF's number, 1 to 8."""
        return self.tags.valueof(_ORIENTATION, 1)

    @property
    def nodata(self) -> float | None:
        """What GDAL's tag says stands for no data; None for what no value of this type can be, and for palettes."""
        text, dtype = self.tags.valueof(GDAL_NODATA), self.series.dtype
        try:
            value = float(str(text).strip().rstrip("\0"))
        except ValueError:
            return None
        if self.kind == _PALETTE or np.isnan(value):
            return None
        if dtype.kind not in "iu":
            return value
        if not value.is_integer() or not np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
            return None
        return self._white() - value if self._turned() else value

    def _turned(self) -> bool:
        """Whether 0 is white; floats that say so mean nothing by it."""
        return self.kind == _WHITE_IS_ZERO and self.series.dtype.kind in "bu"

    def _white(self) -> int:
        """The largest value."""
        return (1 << self.page.bitspersample) - 1

    def values(self, box: Box | None = None) -> np.ndarray:
        """The samples (C, H, W) of the plane, or of a box of it, alpha dropped; only what they need is read.

        Where 0 is white they are turned round; palettes become colors. Raises BadPicture; OnlyWhole for inks and other
        colors, and for 2 to 7 bits, which Pillow knows.
        """
        if self.kind in _CONVERTED and not (self.kind == _YCBCR and self.page.compression in _JPEG):
            raise OnlyWhole(f"holds colors as {_CONVERTED[self.kind]}: convert it to RGB")
        if 1 < self.page.bitspersample < 8 and self.kind != _PALETTE:
            raise OnlyWhole(f"has {self.page.bitspersample} bits a value: convert it to 8")
        values = self._samples(box)
        values = values[:-1] if self.alpha and len(values) in (2, 4) else values
        if self._turned():
            return ~values if values.dtype == bool else values.dtype.type(self._white()) - values
        return self._colored(values) if self.kind == _PALETTE else values

    def _colored(self, values: np.ndarray) -> np.ndarray:
        """Colors (3, H, W) in 8 bits of a palette's numbers (1, H, W)."""
        colors = self.page.colormap
        if values.dtype.kind != "u" or colors is None or len(values) != 1:
            raise BadPicture(f"has a palette for values of the type {values.dtype}")
        colors = colors if colors.max() < 256 else colors // 256  # some write 8 bits where 16 are due
        return colors.astype(np.uint8)[:, values[0]]

    def _samples(self, box: Box | None) -> np.ndarray:
        """The samples (C, H, W) as the file has them."""
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
            if any(page is None for page in self.series.pages):
                raise BadPicture("its planes lie in other files: give each by itself")
            _bound(self.series.nbytes)
            _bound_pieces(self.page, range(len(self.page.dataoffsets)))
            values = self.series.asarray()[_boxed(self.axes, box)][tuple(index)]
        axes = [axis for axis in self.axes if axis in "YXCS"]
        # Samples and channels both mean color; whichever there are become the first axis.
        values = values.transpose([axes.index(axis) for axis in "SCYX" if axis in axes])
        return values.reshape(-1, *values.shape[-2:])

    def _page(self, page: Any, axes: str, box: Box | None) -> np.ndarray:
        """A page, or a box of it: of tiles and strips only those that it touches."""
        if page is None:
            raise BadPicture("its plane lies in another file: give it by itself")
        page = page.aspage()
        try:
            if box is not None and axes.replace("C", "S") in ("YX", "YXS", "SYX"):
                return page_box(page, box)
            _bound(page.nbytes)
            _bound_pieces(page, range(len(page.dataoffsets)))
            return page.asarray()[_boxed(axes, box)]
        except (ValueError, NotImplementedError) as error:
            if "imagecodecs" not in str(error):
                raise
            if box is not None:  # of a whole picture the other boxes need not decode it again
                raise OnlyWhole("can only be decoded whole") from error
            return _by_pillow(page)


@contextmanager
def opened(data: bytes | BufferedIOBase, reading: Reading) -> Generator[Layout]:
    """The layout of a file, from its bytes or from a handle that reads what is needed.

    Raises BadPicture; UserError when tifffile is not installed.
    """
    try:
        import tifffile
    except ImportError:
        raise missing_extra("reading this kind of TIFF file", "tiff") from None
    # What other files its notes name, stays closed.
    source = cast(Any, io.BytesIO(data) if isinstance(data, bytes) else data)
    with tifffile.TiffFile(source, _multifile=False) as file:
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
            about = Header(height, width, layout.samples, layout.dtype, layout.nodata, layout.planes, layout.axes)
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
    _bound(int(np.prod(page.chunks)) * page.dtype.itemsize)
    down, across = page.chunks[:2] if shape[0] == 1 or page.planarconfig == 1 else page.chunks[-2:]
    lines, columns = -(-shape[2] // down), -(-shape[3] // across)
    values = np.zeros((shape[0], height, width, shape[4]), page.dtype)
    tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if page.compression in _JPEG else {}
    for plane in range(shape[0]):
        for line in range(row // down, -(-(row + height) // down)):
            for piece_column in range(column // across, -(-(column + width) // across)):
                number = (plane * lines + line) * columns + piece_column
                _bound_pieces(page, [number])
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
        deep = "uint16" if picture.mode.startswith("I;16") else "uint8"
        types = {"1": ("bool",), "F": ("float32",), "I": ("int16", "int32")}.get(picture.mode, (deep,))
        turned = page.photometric == _WHITE_IS_ZERO and page.bitspersample <= 8  # by Pillow, and not as the file has it
        values = np.asarray(picture) if page.dtype.name in types and not turned else None
    if values is None or values.shape != page.shape:
        name = f"{page.bitspersample} bits" if page.compression == 1 else page.compression.name
        raise BadPicture(f"is packed as {name}: pip install imagecodecs")
    return values.astype(page.dtype)


def _bound(size: int) -> None:
    if size > LARGEST:
        raise BadPicture(f"takes {size / 1e9:.1f} GB of memory: cut it into smaller pictures")


def _bound_pieces(page: Any, numbers: Iterable[int]) -> None:
    """Refuse strips and tiles that become far more than the page says: they would be inflated as a whole."""
    ratio, file = _RATIO.get(page.compression, 0), page.parent.filehandle
    expected = int(np.prod(page.chunks)) * page.dtype.itemsize
    for number in numbers:
        count = page.databytecounts[number]
        if count * ratio < max(_UNUSUAL, 2 * expected):
            continue
        if page.compression == _LZMA:
            raise BadPicture("is compressed as LZMA in large strips: compress it as deflate")
        file.seek(page.dataoffsets[number])
        check_inflated(zlib.decompressobj(), file.read(count), 2 * expected)


def _squeezed(values: np.ndarray, page: Any) -> np.ndarray:
    """(planes, H, W, samples) in the axes of the page."""
    if len(page.shape) == 2:
        return values[0, :, :, 0]
    return values[..., 0] if page.planarconfig == 2 else values[0]


def _has_alpha(extra_samples: int | tuple[int, ...]) -> bool:
    return any(kind in (1, 2) for kind in np.atleast_1d(extra_samples))
