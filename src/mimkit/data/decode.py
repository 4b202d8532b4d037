"""One encoded picture enters as bytes, a tensor (C, H, W) in the depth of its set leaves, or the reason why none can.

8-bit pictures are uint8, all others have the type that `values.STORED` names; `values.Values` says what it means.
"""

import io
import logging
from functools import cache
from io import BufferedIOBase

import numpy as np
import torch
from jaxtyping import Shaped
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor
from torchvision.io import ImageReadMode, decode_png

from mimkit.core.errors import UserError
from mimkit.data.dicom import START, dicom_header, is_dicom, opened_dicom
from mimkit.data.header import LARGEST, BadPicture, Header, check_size
from mimkit.data.jpeg import decode_usual_jpeg, usual_size
from mimkit.data.reading import Reading
from mimkit.data.tiff import GDAL_NODATA, Box, is_tiff, opened, tiff_header
from mimkit.data.values import DEPTHS, STORED, Storage

for _name in ("PIL", "tifffile"):  # what they log about damaged files, BadPicture says
    logging.getLogger(_name).addHandler(logging.NullHandler())
# What Pillow may open: a file that only calls itself .jpg never reaches an interpreter of PostScript.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
_ORIENTATION, _BITS, _COLORS, _EXTRA_SAMPLES, _SIGNS = 0x0112, 258, 320, 338, 339  # tags of EXIF and TIFF
_DARK = 4096  # a 16-bit picture whose values all lie below holds 12 bits or fewer: 8-bit ones beside it are no guide
# Bytes that decoding a sample takes at its peak, where that is far more than its result: measured 7 to 10 for
# JPEG 2000, 8 for AVIF, 11 for WebP; 2 to 7 for all others (python benchmarks/decoding.py).
_WORK = {"JPEG2000": 12, "AVIF": 8, "WEBP": 12}


def header(file: bytes | BufferedIOBase, reading: Reading = Reading()) -> Header:
    """Size, channels, type and no-data value of a picture, before its pixels are decoded.

    Of a TIFF or DICOM file no more is read than its notes.

    Raises BadPicture for what is no picture, too small, too large to decode, or a stack of which no plane was named;
    UserError when an extra is missing.
    """
    file = io.BytesIO(file) if isinstance(file, bytes) else file
    start = file.read(START)
    file.seek(0)
    about = None
    if is_dicom(start):
        about = dicom_header(file, reading)
    elif is_tiff(start):
        about = tiff_header(file, reading)
    if about is None:
        data = file.read()
        picture = _open(data) if not is_tiff(start) else _opened_tiff(data, reading)
        width, height = picture.size
        if picture.format != "TIFF" and _orientation(picture) in (5, 6, 7, 8):  # Pillow turns TIFF files itself
            width, height = height, width
        # Palettes and CMYK count as color: their indices or inks are no shades of gray.
        gray = picture.mode in ("1", "L", "LA", "La", "F", "I") or picture.mode.startswith("I;16")
        about = Header(
            height, width, 1 if gray else 3, _depth_of_png(data) if picture.format == "PNG" else dtype_of(picture)
        )
        if not is_tiff(start):  # Pillow was asked for the plane of a TIFF file
            _refuse_plane(reading)
    if about.dtype not in STORED:
        raise BadPicture(f"holds values of the type {about.dtype}")
    return about if reading.bands is None else about._replace(channels=len(reading.bands))


def decode(data: bytes, storage: Storage, reading: Reading = Reading()) -> Shaped[Tensor, "C H W"]:
    """One plane of an encoded picture, upright, in the type and channels of its set.

    Args:
        data: the bytes of a file in one of FORMATS, of any TIFF (through tifffile), or of a DICOM file.
        storage: what the set holds pictures as. Gray becomes color and color gray (ITU-R 601 luma); any other number of
            channels needs a file with exactly that many samples a pixel. Alpha is dropped.
        reading: which plane and bands are meant.

    A picture of another depth than its set's is refused, but for a 16-bit one among 8-bit ones that uses its range.

    Raises BadPicture with a short reason; UserError when an extra is missing.
    """
    try:
        return _decode(data, storage, reading)
    except (BadPicture, UserError):
        raise
    except Image.DecompressionBombError as error:
        raise BadPicture(f"larger than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels") from error
    except MemoryError as error:
        raise BadPicture("too large for this machine's memory") from error
    except Exception as error:  # decoders meet damaged bytes: whatever they raise means that this file is bad
        reason = _reason(error)
        raise BadPicture("truncated" if "truncated" in reason else f"cannot be decoded: {reason}") from error


def decode_box(file: BufferedIOBase, box: Box | None, storage: Storage, reading: Reading) -> Shaped[Tensor, "C h w"]:
    """A box (row, column, height, width) of a TIFF file, or all of its plane, as `decode`; no more is read than needed.

    Raises BadPicture, OnlyWhole for files that `decode` has to read; UserError.
    """
    try:
        with opened(file, reading) as layout:
            if box is None:
                check_size(layout.side("X"), layout.side("Y"))
            upright = layout.orientation == 1
            values = layout.values(box if upright else None)
            pixels = _upright(_stored(values, storage, reading, layout.nodata), layout.orientation)
            if upright or box is None:
                return pixels
            row, column, height, width = box
            return pixels[:, row : row + height, column : column + width]
    except (BadPicture, UserError):
        raise
    except Exception as error:
        raise BadPicture(f"cannot be decoded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The first line of what a decoder says."""
    return (str(error).splitlines() or [type(error).__name__])[0][:100] or type(error).__name__


def _decode(data: bytes, storage: Storage, reading: Reading) -> Tensor:
    plain = storage.channels in (1, 3) and reading.bands is None
    if is_dicom(data):
        frame = opened_dicom(data, reading)
        return _stored(_as_set(frame.values(), storage.dtype), storage, reading, frame.nodata)
    eight = plain and storage.dtype == torch.uint8
    if eight and storage.nodata is None and not reading.plane and (size := usual_size(data)) and _ended(data):
        check_size(size[1], size[0])
        return decode_usual_jpeg(data, storage.channels)
    tiff = is_tiff(data)
    try:
        picture = _open(data)
    except BadPicture:
        if not tiff:
            raise
        picture = None
    # Pillow converts inks, palettes and compressed colors; what it does not know, or only half, is tifffile's.
    if picture is None or (isinstance(picture, TiffImageFile) and not (plain and _simple(picture, reading))):
        with opened(data, reading) as layout:
            check_size(layout.side("X"), layout.side("Y"))
            return _upright(_stored(layout.values(), storage, reading, layout.nodata), layout.orientation)
    _refuse_plane(reading)
    if not plain and reading.bands is None:
        raise BadPicture(f"{storage.channels} channels can only come from TIFF files, this is {picture.format}")
    orientation = _orientation(picture)
    # Others are faster than Pillow for the usual JPEG; whatever is unusual about one goes Pillow's way.
    usual = picture.format == "JPEG" and picture.mode in ("L", "RGB") and orientation == 1 and _ended(data)
    if usual and eight:
        pixels = decode_usual_jpeg(data, storage.channels)
        return pixels if storage.nodata is None else _stored(pixels.numpy(), storage, reading)
    if picture.format == "PNG" and data[24] == 16:  # bit depth: Pillow would cut color to its high bytes
        values = decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.UNCHANGED)
        values = values[: len(values) - 1] if len(values) in (2, 4) else values
        return _upright(_stored(values.numpy(), storage, reading), orientation)
    return from_pillow(picture, storage, reading)


def _refuse_plane(reading: Reading) -> None:
    """Raises BadPicture where a plane is named that a file of one picture lacks."""
    if reading.plane:
        raise BadPicture(f"has 1 plane, none is number {reading.plane}: lower --images.plane")


def _simple(picture: TiffImageFile, reading: Reading) -> bool:
    """Whether a TIFF file is one 8-bit plane, that Pillow reads right."""
    several = reading.axes is not None or reading.plane is not None or picture.n_frames > 1
    return not several and GDAL_NODATA not in picture.tag_v2 and _eight_bits(picture)


def _eight_bits(picture: TiffImageFile) -> bool:
    """Whether a TIFF file has at most 8 bits a value, and nothing that Pillow would drop or misread."""
    tags = picture.tag_v2
    deep = max(tags.get(_BITS, (1,))) > 8 or set(tags.get(_SIGNS, (1,))) != {1}
    more = 0 in tags.get(_EXTRA_SAMPLES, ())  # a band, and no alpha
    flat = max(tags.get(_COLORS, (256,))) < 256  # a palette of 8 bits where 16 are due
    return not (deep or more or flat)


def from_pillow(picture: Image.Image, storage: Storage, reading: Reading = Reading()) -> Shaped[Tensor, "C H W"]:
    """A picture that Pillow has opened, upright, as `decode` gives it. Raises BadPicture."""
    picture = ImageOps.exif_transpose(picture)  # loads the pixels
    if picture.mode in ("F", "I") or picture.mode.startswith("I;16"):
        values = np.asarray(picture)[None]
        # Pillow's 32-bit integers are 16-bit ones of PNG and PPM files.
        deep = picture.mode == "I" and picture.format != "TIFF" and values.min() >= 0 and values.max() <= 65535
        return _stored(values.astype(np.uint16) if deep else values, storage, reading)
    if picture.mode in ("P", "PA"):  # a palette may hold transparent colors, which Pillow wants as RGBA first
        picture = picture.convert("RGBA")
    if reading.bands is not None or storage != Storage(storage.channels):
        colors = picture.convert("L" if picture.mode in ("1", "L", "LA", "La") else "RGB")
        values = np.array(colors).reshape(*colors.size[::-1], -1).transpose(2, 0, 1)
        return _stored(values, storage, reading)
    pixels = np.array(picture.convert("L" if storage.channels == 1 else "RGB"))
    return torch.from_numpy(pixels).reshape(*pixels.shape[:2], storage.channels).permute(2, 0, 1).contiguous()


def from_array(values: np.ndarray, channels: int, reading: Reading = Reading()) -> Shaped[Tensor, "C H W"]:
    """An array (H, W) or (H, W, C) as `decode` gives a file of these values, in its own type.

    Where `reading` names no range, the array becomes 8 bits: uint16 by 0..65535 and float by 0..1. Color becomes gray
    and gray color; alpha, the fourth of four channels, is dropped. Raises BadPicture.
    """
    values = values[:, :, None] if values.ndim == 2 else values
    if values.ndim != 3:
        raise BadPicture(f"has the shape {values.shape}, wanted (H, W) or (H, W, C)")
    ranged = reading.value_range is not None
    if values.dtype.name not in STORED or (
        values.dtype.kind not in "bf" and values.dtype not in (np.uint8, np.uint16) and not ranged
    ):
        raise BadPicture(f"has the type {values.dtype}, whose black and white nobody knows: convert it to uint8")
    if channels in (1, 3) and values.shape[2] == 4 and reading.bands is None:
        values = values[:, :, :3]
    if reading.bands is None and values.shape[2] not in ((1, 3) if channels in (1, 3) else (channels,)):
        raise BadPicture(f"has {values.shape[2]} channels in its last axis instead of {channels}")
    check_size(values.shape[1], values.shape[0])
    values = np.ascontiguousarray(values.transpose(2, 0, 1))
    if not ranged and values.dtype.kind == "f":
        values = _unit_to_bytes(values)
    dtype = STORED[values.dtype.name] if ranged else torch.uint8
    return _stored(values, Storage(channels, dtype, reading.nodata), reading, dark=True)


def _unit_to_bytes(values: np.ndarray) -> np.ndarray:
    """Floats in 0..1 as bytes."""
    if not np.isfinite(values).all():
        raise BadPicture("holds values that are not finite")
    if values.min() < 0 or values.max() > 1:
        raise BadPicture(
            f"values {values.min():g}..{values.max():g} lie outside 0..1: set images.value_range to their range"
        )
    return np.rint(values.astype(np.float32) * 255).astype(np.uint8)


def _stored(
    values: np.ndarray, storage: Storage, reading: Reading, nodata: float | None = None, *, dark: bool = False
) -> Tensor:
    """Samples (C, H, W) of a file as the set holds them.

    Args:
        nodata: the file's own value for no data; the set's stands for it from here on.
        dark: whether a 16-bit picture may become 8 bits even if it uses but a little of its range.
    """
    if reading.bands is not None:
        if max(reading.bands) > len(values) or min(reading.bands) < 1:
            raise BadPicture(f"has {len(values)} bands, images.bands {' '.join(map(str, reading.bands))} wants others")
        values = values[[band - 1 for band in reading.bands]]
    if len(values) not in ((1, 3) if storage.channels in (1, 3) else (storage.channels,)):
        hint = ": choose with --images.bands" if len(values) > 1 else ""
        raise BadPicture(f"has {len(values)} channels instead of {storage.channels}{hint}")
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * 255
    dtype = STORED.get(values.dtype.name)
    if dtype is None:
        raise BadPicture(f"holds values of the type {values.dtype}")
    if storage.dtype == torch.float32 and dtype == torch.float32:
        values = _holes_as_nan(values, reading.nodata if nodata is None else nodata, reading.nodata)
    elif nodata is not None and nodata != storage.nodata:
        if storage.nodata is None:
            raise BadPicture(f"says that {nodata:g} is no data, unlike the others: give --images.nodata {nodata:g}")
        values = np.where(values == nodata, values.dtype.type(storage.nodata), values)
    if storage.dtype == torch.uint8 and dtype == torch.uint16:
        if not dark and values.max() < _DARK:
            raise BadPicture(f"is a 16-bit picture that ends at {values.max()}, among 8-bit ones: use one depth")
        values = np.rint(values / 257).astype(np.uint8)
    elif dtype != storage.dtype:
        raise BadPicture(f"is {DEPTHS[dtype]}, but the set is {DEPTHS[storage.dtype]}: use one depth")
    values = np.ascontiguousarray(values)
    # A file's own buffer may not be written to, of which torch would warn.
    pixels = torch.from_numpy(values if values.flags.writeable else values.copy()).to(storage.dtype)
    return _to_channels(pixels, storage.channels) if storage.channels in (1, 3) else pixels


def _as_set(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Values of a DICOM file, whose units are the same in every file while the type is not, in the set's type.

    Those that the set cannot hold, and 8-bit ones, stay what they are.
    """
    if torch.uint8 in (dtype, STORED[values.dtype.name]):
        return values
    name = str(dtype).removeprefix("torch.")
    if dtype == torch.float32:
        return values.astype(name)
    limits = torch.iinfo(dtype)
    fits = limits.min <= values.min() and values.max() <= limits.max and (values == np.rint(values)).all()
    return values.astype(name) if fits else values


def _holes_as_nan(values: np.ndarray, nodata: float | None, also: float | None) -> np.ndarray:
    """Float32 values with NaN where there is no data. Raises BadPicture for infinite ones."""
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
        for hole in {nodata, also} - {None}:
            # In float32, in which many a value for no data was written first: as text it is rounded otherwise.
            values = np.where(values == np.float32(hole), np.float32(np.nan), values)
    if np.isinf(values).any():
        raise BadPicture("holds infinite values")
    return values


def _open(data: bytes) -> Image.Image:
    """The picture with only its header read, checked for what a header can tell."""
    if not data:
        raise BadPicture("zero bytes")
    try:
        picture = Image.open(io.BytesIO(data), formats=_formats())
    except Image.DecompressionBombError:
        raise BadPicture(f"larger than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels") from None
    except Exception as error:
        raise BadPicture("not a picture that can be read") from error
    check_size(*picture.size)
    work = picture.size[0] * picture.size[1] * len(picture.getbands()) * _WORK.get(picture.format or "", 4)
    if work > LARGEST:
        raise BadPicture(f"takes {work / 1e9:.1f} GB of memory to decode: cut it into smaller pictures")
    return picture


def _opened_tiff(data: bytes, reading: Reading) -> Image.Image:
    """A TIFF file where tifffile is not installed: what Pillow cannot open needs the extra."""
    try:
        return _open(data)
    except BadPicture:
        with opened(data, reading):  # says which
            raise


@cache
def _formats() -> list[str]:
    """Those of FORMATS that this Pillow has."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _depth_of_png(data: bytes) -> str:
    return "uint16" if data[24] == 16 else "uint8"


def dtype_of(picture: Image.Image) -> str:
    """The type of the values of a picture of Pillow, by its mode."""
    if picture.mode == "I":
        return "int32" if picture.format == "TIFF" else "uint16"
    return "uint16" if picture.mode.startswith("I;16") else "float32" if picture.mode == "F" else "uint8"


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8, from the header alone."""
    if picture.format == "PNG" and not {"exif", "Raw profile type exif"} & picture.info.keys():
        return 1  # Pillow would decode the whole picture to look behind the pixels
    try:
        orientation = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged notes do not make a bad picture
        return 1
    return orientation if orientation in range(1, 9) else 1


def _ended(data: bytes) -> bool:
    """Whether a JPEG has its end marker: torchvision fills what is missing from a truncated one with gray."""
    return data[-2:] == b"\xff\xd9" or data.rstrip(b"\0")[-2:] == b"\xff\xd9"


def _upright(pixels: Tensor, orientation: int) -> Tensor:
    """EXIF orientation applied to (C, H, W)."""
    if orientation >= 5:
        pixels = pixels.mT
    if orientation in (2, 3, 6, 7):
        pixels = pixels.flip(2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels.flip(1)
    return pixels.contiguous()


def _to_channels(pixels: Shaped[Tensor, "c H W"], channels: int) -> Tensor:
    """1 or 3 channels to 1 or 3, in the same type."""
    if len(pixels) == channels:
        return pixels
    if channels == 3:
        return pixels.expand(3, -1, -1).contiguous()
    # Pillow's own weights and rounding, for what does not come through Pillow, as 16-bit PNG files.
    luma = torch.tensor([0.299, 0.587, 0.114])
    gray = (luma @ pixels.float().flatten(1)).view(1, *pixels.shape[1:])
    return gray if pixels.dtype == torch.float32 else gray.round().to(pixels.dtype)
