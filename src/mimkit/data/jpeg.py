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


@cache
def _simplejpeg() -> Any | None:
    """The module, where it is installed."""
    return import_module("simplejpeg") if find_spec("simplejpeg") else None
