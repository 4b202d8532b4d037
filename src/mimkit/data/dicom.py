"""DICOM files through pydicom: bytes enter, size and values in their own units (Hounsfield for CT) leave."""

import io
import zlib
from functools import cached_property
from io import BufferedIOBase
from typing import Any

import numpy as np
from PIL import Image

from mimkit.core.errors import UserError, missing_extra
from mimkit.data.header import LARGEST, BadPicture, Header, check_inflated, check_size
from mimkit.data.reading import Reading

START = 132  # bytes that tell a DICOM file
_INFLATED = 1 << 29  # bytes that the content of a deflated file may take
_DEFLATED = "1.2.840.10008.1.2.1.99"  # a transfer syntax
_WORK = 16  # bytes that a value takes while it is decoded and rescaled
# What slopes are called: doses have a name of their own.
_SLOPES = ("RescaleSlope", "DoseGridScaling")


def is_dicom(data: bytes) -> bool:
    """Whether these bytes, START or more, begin like a DICOM file; one that is a TIFF file too is DICOM."""
    return data[128:132] == b"DICM"


class Frame:
    """A frame of a DICOM file: its notes enter, size, type and values leave.

    Values are the stored ones by slope and intercept, or by the file's table (modality LUT); palettes become colors.
    MONOCHROME1, where low values are white, is turned round, so that air is dark in every X-ray.

    Raises BadPicture for a file without a picture, and for a stack of which nobody said which frame is meant.
    """

    def __init__(self, about: Any, reading: Reading) -> None:
        self.about = about
        self.height, self.width = int(about.get("Rows") or 0), int(about.get("Columns") or 0)
        if not self.height or not self.width:
            raise BadPicture("a DICOM file without a picture")
        self.samples = int(about.get("SamplesPerPixel") or 1)
        if self.samples not in (1, 3):
            raise BadPicture(f"has {self.samples} samples a pixel: DICOM files are read with 1 or 3")
        check_size(self.width, self.height)
        if (work := self.height * self.width * self.samples * _WORK) > LARGEST:
            raise BadPicture(f"takes {work / 1e9:.1f} GB of memory to decode: cut it into smaller pictures")
        self.frames = int(about.get("NumberOfFrames") or 1)
        if self.frames > 1 and reading.plane is None:
            raise BadPicture(f"is a stack of {self.frames} frames: give --images.plane 0")
        self.plane = reading.plane or 0
        if self.plane >= self.frames:
            raise BadPicture(f"has {self.frames} frames, none is number {self.plane}: lower --images.plane")
        self.kind = about.get("PhotometricInterpretation")
        self.slope, self.intercept = self._rescale()

    @property
    def channels(self) -> int:
        """1 gray, 3 color."""
        return 3 if self.samples == 3 or self.kind == "PALETTE COLOR" else 1

    @property
    def table(self) -> Any:
        """The table from stored values to the scanner's, or None."""
        return (self.about.get("ModalityLUTSequence") or [None])[0]

    @cached_property
    def dtype(self) -> str:
        """The type that holds every value that the file can have."""
        if self.kind == "PALETTE COLOR":
            return f"uint{self.about.RedPaletteColorLookupTableDescriptor[2]}"
        if self.table is not None:
            return "uint8" if self.table.LUTDescriptor[2] == 8 else "uint16"
        if "BitsStored" not in self.about or self.slope != 1 or self.intercept != round(self.intercept):
            return "float32"
        if self.about.BitsStored == 1:
            return "bool"
        least, most = (value + self.intercept for value in self._stored_range())
        for name in ("uint8", "uint16", "int16"):
            if np.iinfo(name).min <= least and most <= np.iinfo(name).max:
                return name
        return "float32"

    @property
    def nodata(self) -> float | None:
        """The value of pixels that only fill the picture up, after slope and intercept."""
        padding = self._padding("PixelPaddingValue")
        if padding is None or self.table is not None or self.channels == 3:
            return None
        value = float(self._turned(padding)) * self.slope + self.intercept
        whole = self.dtype in ("uint8", "uint16", "int16")
        fits = not whole or np.iinfo(self.dtype).min <= value <= np.iinfo(self.dtype).max
        return value if fits else None

    def values(self) -> np.ndarray:
        """The samples (C, H, W)."""
        from pydicom.pixels import apply_color_lut, apply_modality_lut

        values = self._pixels()
        if self.kind == "PALETTE COLOR":
            return apply_color_lut(values, self.about)[..., :3].transpose(2, 0, 1)
        values = values.transpose(2, 0, 1) if values.ndim == 3 else values[None]
        if self.table is not None:
            return apply_modality_lut(self._turned(values), self.about).astype(self.dtype)
        first, last = self._padding("PixelPaddingValue"), self._padding("PixelPaddingRangeLimit")
        if first is not None and last is not None:
            values = np.where((values >= min(first, last)) & (values <= max(first, last)), first, values)
        values = self._turned(values)
        if self.dtype == "float32":
            return (values * self.slope + self.intercept).astype(np.float32)
        if self.dtype != "bool":
            values = values.astype(np.int64) + round(self.intercept)
            limits = np.iinfo(self.dtype)
            if values.min() < limits.min or values.max() > limits.max:
                raise BadPicture(
                    f"holds {values.min()} to {values.max()}: more than the {self.about.BitsStored} bits it says"
                )
        return values.astype(self.dtype)

    def _pixels(self) -> np.ndarray:
        """Stored values (H, W) or (H, W, 3), brightness and colors as red, green and blue."""
        from pydicom.pixels import pixel_array

        syntax = self.about.file_meta.TransferSyntaxUID
        try:
            if syntax.is_encapsulated:
                self._check_size_inside()
            return pixel_array(self.about, index=self.plane if self.frames > 1 else None)
        except (NotImplementedError, RuntimeError) as error:  # a compression whose decoder is not installed, or damage
            reasons = str(error).splitlines()
            if "missing" in reasons[0] or "not support" in str(error):
                family = "openjpeg" if "2000" in syntax.name else "libjpeg"
                raise BadPicture(
                    f"is compressed as {_compression(syntax.name)}: pip install pylibjpeg pylibjpeg-{family}"
                ) from error
            raise BadPicture(f"cannot be decoded: {reasons[-1].strip()[:100]}") from error

    def _check_size_inside(self) -> None:
        """Refuse compressed pixels of another size than the notes say: they could be of any."""
        from pydicom.encaps import get_frame

        frame = get_frame(self.about.PixelData, self.plane, number_of_frames=self.frames)
        try:
            with Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as picture:
                size = picture.size
        except Exception:  # another compression
            return
        if size != (self.width, self.height):
            raise BadPicture(f"its pixels are {size[0]}x{size[1]}, but it says {self.width}x{self.height}")

    def _stored_range(self) -> tuple[int, int]:
        """The least and largest stored value that the bits allow."""
        bits, signed = int(self.about.BitsStored), self.about.get("PixelRepresentation", 0) == 1
        least = -(1 << (bits - 1)) if signed else 0
        return least, least + (1 << bits) - 1

    def _turned(self, values: Any) -> Any:
        """Stored values, of MONOCHROME1 counted from the other end."""
        if self.kind != "MONOCHROME1" or "BitsStored" not in self.about:
            return values
        values = values.astype(np.int64) if isinstance(values, np.ndarray) else values
        return sum(self._stored_range()) - values

    def _padding(self, name: str) -> int | None:
        """A stored value, signed as the pixels are, whatever the notes take it for."""
        value = self.about.get(name)
        if value is None or "BitsStored" not in self.about:
            return None
        value = int(value) if not isinstance(value, bytes) else int.from_bytes(value[:2], "little")
        if self.about.get("PixelRepresentation", 0) == 1 and value >= 1 << 15 and self.about.BitsAllocated == 16:
            return value - (1 << 16)
        if self.about.get("PixelRepresentation", 0) == 0 and value < 0:
            return value + (1 << int(self.about.BitsAllocated))
        return value

    def _rescale(self) -> tuple[float, float]:
        """Slope and intercept: of the file, or in the newer kinds of file of the frame or of all frames."""
        places = [self.about]
        frames = self.about.get("PerFrameFunctionalGroupsSequence") or []
        for group in [*frames[self.plane : self.plane + 1], *(self.about.get("SharedFunctionalGroupsSequence") or [])]:
            places += group.get("PixelValueTransformationSequence") or []
        for place in places:
            slope = next((place.get(name) for name in _SLOPES if place.get(name) is not None), None)
            intercept = place.get("RescaleIntercept")
            if slope is not None or intercept is not None:
                return float(1 if slope is None else slope) or 1.0, float(intercept or 0)
        return 1.0, 0.0


def dicom_header(file: BufferedIOBase, reading: Reading) -> Header:
    """What a file says about itself; its pixels are not read. Raises BadPicture; UserError without pydicom."""
    try:
        frame = Frame(_read(file, pixels=False), reading)
        return Header(frame.height, frame.width, frame.channels, frame.dtype, frame.nodata, frame.frames)
    except (BadPicture, UserError):
        raise
    except Exception as error:  # whatever pydicom raises for damaged bytes
        raise BadPicture("a DICOM file whose notes are damaged") from error


def opened_dicom(data: bytes, reading: Reading) -> Frame:
    """The frame that is meant, of a whole file. Raises BadPicture; UserError when pydicom is not installed."""
    return Frame(_read(io.BytesIO(data), pixels=True), reading)


def _read(file: BufferedIOBase, *, pixels: bool) -> Any:
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
    except ImportError:
        raise missing_extra("reading DICOM files", "science") from None
    start = file.read(1 << 10)
    if _DEFLATED.encode() in start:
        file.seek(0)
        _bound_inflated(file.read())
    file.seek(0)
    try:
        return pydicom.dcmread(file, stop_before_pixels=not pixels)
    except (InvalidDicomError, EOFError, OSError, zlib.error) as error:
        raise BadPicture("truncated") from error


def _compression(name: str) -> str:
    """A short name of a transfer syntax: `JPEG-LS Lossless` of `JPEG-LS Lossless Image Compression`."""
    return name.split(" (")[0].split(",")[0].removesuffix(" Image Compression")


def _bound_inflated(data: bytes) -> None:
    """Refuse a deflated file that takes too much memory: pydicom would inflate it as a whole."""
    begin = 144 + int.from_bytes(data[140:144], "little")  # behind the notes that are not deflated
    check_inflated(zlib.decompressobj(-zlib.MAX_WBITS), data[begin:], _INFLATED)
