"""The usual JPEG fast: the bytes of one enter, its pixels (C, H, W) leave, by the fastest library that is installed.

simplejpeg (extra `jpeg`) and torchvision both drive libjpeg-turbo with its exact transform and smooth upsampling, so
the pixels are the same to the last bit; simplejpeg spends less around it (benchmarks/jpeg.py).
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

_NOTES, _PIXELS = 0xE1, 0xDA  # markers of segments: of EXIF and XMP, and of coded pixels
_MOST = 1 << 26  # pixels
_MODES = {1: (ImageReadMode.GRAY, "GRAY"), 3: (ImageReadMode.RGB, "RGB")}


def decode_usual_jpeg(data: bytes, channels: int) -> UInt8[Tensor, "C H W"]:
    """A baseline or progressive JPEG of gray or YCbCr as 1 or 3 channels, as it is stored: EXIF turns nothing.

    Raises RuntimeError for bytes that are no such file; what is damaged behind the header is filled up in silence.
    """
    mode, colors = _MODES[channels]
    library = _simplejpeg()
    if library is not None:
        try:
            return torch.from_numpy(library.decode_jpeg(data, colors)).permute(2, 0, 1)
        except ValueError:
            pass  # it refuses what libjpeg only warns of; there torchvision's answer holds in any case
    pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=mode)
    assert isinstance(pixels, Tensor)
    return pixels


def usual_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG of gray or YCbCr that stands upright as it is stored.

    None for all others, for what may be one of them (a camera's notes, which may turn it; huge ones), and without the
    extra: Pillow looks closer, which takes a tenth of the time that decoding does.
    """
    library = _simplejpeg()
    if library is None or data[:2] != b"\xff\xd8" or _has_notes(data):
        return None
    try:
        height, width, colors, _ = library.decode_jpeg_header(data)
    except ValueError:
        return None
    return (height, width) if colors in ("YCbCr", "Gray") and height * width <= _MOST else None


def _has_notes(data: bytes) -> bool:
    """Whether a segment before the pixels is a camera's notes, or the segments are not in order."""
    place = 2
    while data[place : place + 1] == b"\xff" and place + 4 <= len(data):
        marker = data[place + 1]
        if marker in (_NOTES, _PIXELS):
            return marker == _NOTES
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return True


@cache
def _simplejpeg() -> Any | None:
    """The module, where it is installed."""
    return import_module("simplejpeg") if find_spec("simplejpeg") else None
