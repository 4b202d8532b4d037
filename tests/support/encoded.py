"""Encoded pictures for tests: arrays and pictures enter, the bytes of files leave, sound and broken in all ways."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def smooth(height=40, width=56, channels=3) -> np.ndarray:
    """A picture that survives JPEG well."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [127 + 100 * np.sin(x / 17 + c) * np.cos(y / 23 - c) for c in range(channels)]
    return np.stack(planes, -1).round().astype(np.uint8)


def encoded(picture: Image.Image, kind: str, **how) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **how)
    return out.getvalue()


def bomb() -> bytes:
    """A PNG whose header promises 40,000 x 40,000 pixels."""
    data = bytearray(encoded(Image.new("L", (16, 16)), "PNG"))
    data[16:24] = struct.pack(">II", 40_000, 40_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


JPEG = encoded(Image.fromarray(smooth(200, 300)), "JPEG", quality=95)
PNG = encoded(Image.fromarray(smooth(200, 300)), "PNG")
BAD = {
    "empty.jpg": (b"", "zero bytes"),
    "text.jpg": (b"just some words, no picture at all\n" * 9, "not a picture"),
    "truncated.jpg": (JPEG[: len(JPEG) // 2], "truncated"),
    "last_byte_missing.jpg": (JPEG[:-40], "truncated"),
    "truncated.png": (PNG[: len(PNG) // 2], "truncated|decoded"),
    "bomb.png": (bomb(), "larger than"),
    "one.png": (encoded(Image.new("RGB", (1, 1)), "PNG"), "1x1: smaller than 8"),
    "thin.png": (encoded(Image.new("RGB", (300, 7)), "PNG"), "smaller than 8"),
    "cut_header.jpg": (JPEG[:30], "truncated|not a picture"),
}
