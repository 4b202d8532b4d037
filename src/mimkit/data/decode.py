"""One encoded picture enters as bytes, a uint8 tensor (C, H, W) leaves; what cannot be read right is refused.

Pictures are held as 8 bits a channel everywhere in mimkit: 16-bit and float values are scaled to 0..255 here.
"""

import io
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, decode_png

from mimkit.core.errors import UserError, missing_extra

SMALLEST = 8  # pixels on a side; anything smaller is an icon, a tracking pixel or damage
_ORIENTATION = 0x0112  # the EXIF tag
_SAMPLES, _EXTRA_SAMPLES, _PHOTOMETRIC = 277, 338, 262  # TIFF tags
_MODES = {1: ImageReadMode.GRAY, 3: ImageReadMode.RGB}


class BadPicture(Exception):
    """A picture that cannot be read right. The message is a short reason, such as 'truncated'."""


class Header(NamedTuple):
    """What a picture's header says, before any pixel is decoded; height and width after EXIF orientation."""

    height: int
    width: int
    channels: int


def header(data: bytes) -> Header:
    """Size and number of color channels (alpha not counted: 1 gray, 3 color, N for other TIFF files).

    Raises BadPicture for what is no picture, too small, or larger than Pillow's limit against decompression
    bombs.
    """
    if _is_tiff(data) and (tiff := _tiff_header(data)):
        return tiff
    picture = _open(data)
    width, height = picture.size
    if picture.format != "TIFF" and _orientation(picture) in (5, 6, 7, 8):  # Pillow turns TIFF files itself
        width, height = height, width
    # Palettes and CMYK count as color: their indices or inks are no shades of gray.
    gray = picture.mode in ("1", "L", "LA", "La", "F", "I") or picture.mode.startswith("I;16")
    return Header(height, width, 1 if gray else 3)


def decode(
    data: bytes, channels: int, value_range: tuple[float, float] | None = None
) -> UInt8[Tensor, "{channels} H W"]:
    """The first frame of an encoded picture, upright, as 8 bits a channel.

    Args:
        data: the bytes of a file in any format that Pillow reads (TIFF with N channels through tifffile).
        channels: 1 or 3, converting between gray and color (ITU-R 601 luma); any other number needs a TIFF
            file with exactly that many samples a pixel. Alpha is dropped.
        value_range: raw values that become 0 and 255 in 16-bit, 32-bit and float pictures (values outside are
            clipped); by default 0..65535 for 16-bit and 0..1 for float. 8-bit pictures are taken as they are.

    Raises BadPicture with a short reason; UserError when an extra is missing.
    """
    try:
        return _decode(data, channels, value_range)
    except (BadPicture, UserError):
        raise
    except Image.DecompressionBombError as error:
        raise BadPicture(f"larger than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels") from error
    except Exception as error:  # decoders meet damaged bytes: whatever they raise means that this file is bad
        reason = str(error).split("\n")[0][:100] or type(error).__name__
        raise BadPicture("truncated" if "truncated" in reason else f"cannot be decoded: {reason}") from error


def _decode(data: bytes, channels: int, value_range: tuple[float, float] | None) -> Tensor:
    if _is_tiff(data) and channels not in (1, 3):
        return _checked(_tiff(data, channels, value_range))
    try:
        picture = _open(data)
    except BadPicture:
        if data and _is_tiff(data):  # 16-bit color, 3 float channels, ...: Pillow does not know them
            return _checked(_tiff(data, channels, value_range))
        raise
    if channels not in (1, 3):
        raise BadPicture(f"{channels} channels can only come from TIFF files, this is {picture.format}")
    orientation = _orientation(picture)
    # torchvision is faster than Pillow for the usual JPEG; whatever is unusual about one goes Pillow's way.
    if picture.format == "JPEG" and picture.mode in ("L", "RGB") and orientation == 1 and _ended(data):
        pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=_MODES[channels])
        assert isinstance(pixels, Tensor)
        return pixels
    if picture.format == "PNG" and data[24] == 16:  # bit depth: Pillow would cut color to its high bytes
        values = decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.UNCHANGED)
        values = values[:1] if len(values) == 2 else values[:3]
        return _upright(_to_channels(_to_bytes(values.numpy(), value_range), channels), orientation)
    return from_pillow(picture, channels, value_range)


def from_pillow(
    picture: Image.Image, channels: int, value_range: tuple[float, float] | None = None
) -> UInt8[Tensor, "{channels} H W"]:
    """A picture that Pillow has opened, upright, as `decode` gives it; `channels` is 1 or 3.

    Raises BadPicture for values that are not finite or out of range.
    """
    picture = ImageOps.exif_transpose(picture)  # loads the pixels
    if picture.mode in ("F", "I") or picture.mode.startswith("I;16"):
        return _to_channels(_to_bytes(np.asarray(picture)[None], value_range), channels)
    if picture.mode in ("P", "PA"):  # a palette may hold transparent colors, which Pillow wants as RGBA first
        picture = picture.convert("RGBA")
    pixels = np.array(picture.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(pixels).reshape(*pixels.shape[:2], channels).permute(2, 0, 1).contiguous()


def from_array(
    values: np.ndarray, channels: int, value_range: tuple[float, float] | None = None
) -> UInt8[Tensor, "{channels} H W"]:
    """An array (H, W) or (H, W, C) as `decode` gives a file of these values: 16-bit and float ones by `value_range`.

    Color becomes gray and gray color; alpha, the fourth of four channels, is dropped. Raises BadPicture.
    """
    values = values[:, :, None] if values.ndim == 2 else values
    if values.ndim != 3:
        raise BadPicture(f"has the shape {values.shape}, wanted (H, W) or (H, W, C)")
    if values.dtype.kind not in "bf" and values.dtype not in (np.uint8, np.uint16) and value_range is None:
        raise BadPicture(f"has the type {values.dtype}, whose black and white nobody knows: convert it to uint8")
    if channels in (1, 3) and values.shape[2] == 4:
        values = values[:, :, :3]
    if values.shape[2] not in ((1, 3) if channels in (1, 3) else (channels,)):
        raise BadPicture(f"has {values.shape[2]} channels in its last axis instead of {channels}")
    pixels = _checked(_to_bytes(np.ascontiguousarray(values.transpose(2, 0, 1)), value_range))
    return _to_channels(pixels, channels) if channels in (1, 3) else pixels


def _open(data: bytes) -> Image.Image:
    """The picture with only its header read, checked for what a header can tell."""
    if not data:
        raise BadPicture("zero bytes")
    try:
        picture = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise BadPicture(f"larger than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels") from None
    except Exception as error:
        raise BadPicture("not a picture that can be read") from error
    _check_size(*picture.size)
    return picture


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8, from the header alone."""
    if picture.format == "PNG" and not {"exif", "Raw profile type exif"} & picture.info.keys():
        return 1  # Pillow would decode the whole picture to look behind the pixels
    try:
        orientation = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged notes do not make a bad picture
        return 1
    return orientation if orientation in range(1, 9) else 1


def _check_size(width: int, height: int) -> None:
    if min(width, height) < SMALLEST:
        raise BadPicture(f"{width}x{height}: smaller than {SMALLEST} pixels")
    if Image.MAX_IMAGE_PIXELS and width * height > 2 * Image.MAX_IMAGE_PIXELS:
        raise BadPicture(f"larger than {2 * Image.MAX_IMAGE_PIXELS:,} pixels")


def _checked(pixels: Tensor) -> Tensor:
    _check_size(pixels.shape[2], pixels.shape[1])
    return pixels


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


def _to_bytes(values: np.ndarray, value_range: tuple[float, float] | None) -> Tensor:
    """Values (C, H, W) of any type scaled to uint8."""
    if values.dtype in (np.uint8, np.bool_):
        return torch.from_numpy(values.astype(np.uint8) * (255 if values.dtype == np.bool_ else 1))
    floating = np.issubdtype(values.dtype, np.floating)
    # NaN and infinity would become black and white silently.
    if floating and not np.isfinite(values).all():
        raise BadPicture("holds values that are not finite")
    low, high = value_range or ((0.0, 1.0) if floating else (0.0, 65535.0))
    least, most = float(values.min()), float(values.max())
    # No guess at a scale: two files of one set would get different ones, and the model would see that.
    if value_range is None and (least < low or most > high):
        raise BadPicture(
            f"values {least:g}..{most:g} lie outside {low:g}..{high:g}: set images.value_range to their range"
        )
    scaled = (values.astype(np.float32) - low) * (255.0 / (high - low))
    return torch.from_numpy(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


def _to_channels(pixels: Tensor, channels: int) -> Tensor:
    """uint8 (1 or 3, H, W) to 1 or 3 channels."""
    if len(pixels) == channels:
        return pixels
    if channels == 3:
        return pixels.expand(3, -1, -1).contiguous()
    # Pillow's own weights and rounding, for what does not come through Pillow, as 16-bit PNG files.
    luma = torch.tensor([0.299, 0.587, 0.114])
    return (luma @ pixels.float().flatten(1)).round().to(torch.uint8).view(1, *pixels.shape[1:])


def _is_tiff(data: bytes) -> bool:
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _tiff(data: bytes, channels: int, value_range: tuple[float, float] | None) -> Tensor:
    """A TIFF file through tifffile: samples or channels first, any other axis at its first place."""
    try:
        import tifffile
    except ImportError:
        raise missing_extra("reading this kind of TIFF file", "tiff") from None
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        series = file.series[0]
        _check_size(series.sizes.get("width", 0), series.sizes.get("height", 0))
        values, axes, tags = series.asarray(), series.axes, file.pages.first.tags
        alpha = _has_alpha(tags.valueof(_EXTRA_SAMPLES, 0))
        orientation = tags.valueof(_ORIENTATION, 1)
    if channels not in (1, 3) and series.sizes.get("other") == channels:
        axes = axes.replace("Q", "C")  # pages without a stated meaning, as many as there should be channels
    for position in range(len(axes) - 1, -1, -1):  # from the end: what is taken away moves no axis still to be met
        if axes[position] not in "YXCS":
            values, axes = values.take(0, axis=position), axes[:position] + axes[position + 1 :]
    # Samples and channels both mean color; whichever there are become the first axis.
    values = values.transpose([axes.index(axis) for axis in "SCYX" if axis in axes])
    values = values.reshape(-1, *values.shape[-2:])
    if channels in (1, 3) and alpha and len(values) in (2, 4):
        values = values[:-1]
    if len(values) not in ((1, 3) if channels in (1, 3) else (channels,)):
        raise BadPicture(f"has {len(values)} channels instead of {channels}")
    pixels = _to_bytes(np.ascontiguousarray(values), value_range)
    return _upright(_to_channels(pixels, channels) if channels in (1, 3) else pixels, orientation)


def _has_alpha(extra_samples: int | tuple[int, ...]) -> bool:
    return any(kind in (1, 2) for kind in np.atleast_1d(extra_samples))


def _tiff_header(data: bytes) -> Header | None:
    """Size and channels of a TIFF file by tifffile; None when it is not installed, so that Pillow answers."""
    try:
        import tifffile
    except ImportError:
        return None
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            sizes, tags = file.series[0].sizes, file.pages.first.tags
            samples = sizes.get("sample", 1) * sizes.get("channel", 1)  # interleaved or plane after plane
            height, width = sizes["height"], sizes["width"]
            alpha = _has_alpha(tags.valueof(_EXTRA_SAMPLES, 0))
            palette_or_cmyk = tags.valueof(_PHOTOMETRIC) in (3, 5)
            turned = tags.valueof(_ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception as error:
        raise BadPicture("not a TIFF file that can be read") from error
    _check_size(width, height)
    if turned:
        height, width = width, height
    # Both are converted to red, green and blue when they are read.
    if palette_or_cmyk:
        samples = 3
    return Header(height, width, samples - 1 if alpha and samples in (2, 4) else samples)
