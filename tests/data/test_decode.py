"""Decoding: every kind of file that design section 12 names is read right or refused with a reason."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from encoded import BAD, JPEG, PNG, encoded, smooth
from mimkit.core.errors import UserError
from mimkit.data.decode import BadPicture, decode, header

torch.set_num_threads(1)  # waiting threads cost more than they save on shared cores


def pixels(data: bytes, channels=3, **how) -> np.ndarray:
    decoded = decode(data, channels, **how)
    assert decoded.dtype == torch.uint8 and decoded.shape[0] == channels
    return decoded.permute(1, 2, 0).numpy().astype(int)


def near(a: np.ndarray, b: np.ndarray, within: float) -> None:
    assert a.shape == b.shape
    assert np.abs(a - b.astype(int)).max() <= within, np.abs(a - b.astype(int)).max()


def test_plain_color_and_gray():
    rgb = smooth()
    near(pixels(encoded(Image.fromarray(rgb), "PNG")), rgb, 0)
    near(pixels(encoded(Image.fromarray(rgb), "JPEG", quality=98, subsampling=0)), rgb, 6)
    luma = np.array(Image.fromarray(rgb).convert("L"))[..., None]
    near(pixels(encoded(Image.fromarray(rgb), "PNG"), 1), luma, 0)
    near(pixels(encoded(Image.fromarray(rgb), "JPEG", quality=98, subsampling=0), 1), luma, 4)
    gray = encoded(Image.fromarray(luma[..., 0]), "JPEG", quality=98)
    near(pixels(gray, 1), luma, 4)
    near(pixels(gray, 3), luma.repeat(3, -1), 4)
    assert header(gray).channels == 1 and header(encoded(Image.fromarray(rgb), "WEBP")).channels == 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PNG16", "TIFF", "TIFF16"])
def test_exif_orientation(orientation, kind, monkeypatch):
    """The reference is EXIF's definition: which edges row 0 and column 0 of the stored picture are."""
    upright = smooth(16, 24)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind.endswith("16"):
        picture = Image.fromarray(np.ascontiguousarray(stored[..., 0]).astype(np.uint16) * 257)
        data = encoded(picture, kind[:-2], exif=exif)
        near(pixels(data, 1), upright[..., :1], 0)
    else:
        how = {"quality": 98, "subsampling": 0} if kind == "JPEG" else {}
        data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **how)
        near(pixels(data), upright, 8 if kind == "JPEG" else 0)
    assert header(data)[:2] == (16, 24)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert header(data)[:2] == (16, 24)


def test_palette_alpha_cmyk_bits_and_animation():
    rgb = smooth()
    palette = Image.fromarray(rgb).quantize(64)
    color = np.array(palette.convert("RGB"))
    near(pixels(encoded(palette, "PNG", transparency=3)), color, 0)
    near(pixels(encoded(palette, "PNG", transparency=bytes(range(64)))), color, 0)
    alpha = np.dstack([rgb, np.full(rgb.shape[:2], 10, np.uint8)])
    near(pixels(encoded(Image.fromarray(alpha), "PNG")), rgb, 0)
    gray_alpha = Image.fromarray(rgb[..., 0]).convert("LA")
    gray_alpha.putalpha(5)
    near(pixels(encoded(gray_alpha, "PNG"), 1), rgb[..., :1], 0)
    near(pixels(encoded(gray_alpha, "PNG"), 3), rgb[..., :1].repeat(3, -1), 0)
    assert header(encoded(gray_alpha, "PNG")).channels == 1
    ink = (255 - np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])).astype(np.uint8)  # no black
    cmyk = Image.fromarray(ink, "CMYK")
    near(pixels(encoded(cmyk, "TIFF")), rgb, 1)
    near(pixels(encoded(cmyk, "JPEG", quality=98, subsampling=0)), rgb, 8)
    bits = smooth()[..., 0] > 127
    near(pixels(encoded(Image.fromarray(bits), "PNG"), 1), bits[..., None] * 255, 0)
    frames = [Image.fromarray(smooth()[..., 0]), Image.fromarray(255 - smooth()[..., 0])]
    near(pixels(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), 1), smooth()[..., :1], 0)
    near(pixels(encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]), 1), smooth()[..., :1], 0)


def png16(values: np.ndarray) -> bytes:
    """A 16-bit color PNG, written by hand because Pillow cannot."""
    height, width, _ = values.shape
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def test_sixteen_bits_use_the_full_range():
    values = np.linspace(0, 65535, 40 * 56).reshape(40, 56).astype(np.uint16)
    expected = np.rint(values / 257)[..., None]
    for kind in ("PNG", "TIFF"):
        near(pixels(encoded(Image.fromarray(values), kind), 1), expected, 0)
        near(pixels(encoded(Image.fromarray(values), kind), 3), expected.repeat(3, -1), 0)
    color = np.dstack([values, values[::-1], values[:, ::-1]])
    near(pixels(png16(color)), np.rint(color / 257), 0)
    twelve = (values // 16).astype(np.uint16)
    near(
        pixels(encoded(Image.fromarray(twelve), "PNG"), 1, value_range=(0, 4095)),
        np.rint(twelve / 4095 * 255)[..., None],
        0,
    )


def test_float_tiff():
    values = smooth()[..., 0].astype(np.float32) / 255
    data = encoded(Image.fromarray(values), "TIFF")
    near(pixels(data, 1), smooth()[..., :1], 0)
    hot = encoded(Image.fromarray(values * 40 - 10), "TIFF")
    with pytest.raises(BadPicture, match=r"images\.value_range"):
        decode(hot, 1)
    near(pixels(hot, 1, value_range=(-10, 30)), smooth()[..., :1], 0)
    broken = values.copy()
    broken[3, 3] = np.nan
    with pytest.raises(BadPicture, match="not finite"):
        decode(encoded(Image.fromarray(broken), "TIFF"), 1)


@pytest.mark.parametrize("layout", ["interleaved", "planes", "imagej", "pages"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_multichannel_tiff(layout, kind):
    tifffile = pytest.importorskip("tifffile")
    values = smooth(channels=5)
    raw = values.astype(kind) * (257 if kind is np.uint16 else 1)
    out = io.BytesIO()
    if layout == "interleaved":
        tifffile.imwrite(out, raw, photometric="minisblack", planarconfig="contig")
    elif layout == "planes":
        tifffile.imwrite(out, raw.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate")
    elif layout == "imagej":
        tifffile.imwrite(out, raw.transpose(2, 0, 1), imagej=True, metadata={"axes": "CYX"})
    else:
        tifffile.imwrite(out, raw.transpose(2, 0, 1), photometric="minisblack")
    near(pixels(out.getvalue(), 5), values, 0)
    assert header(out.getvalue()) == (40, 56, 1 if layout == "pages" else 5)
    with pytest.raises(BadPicture, match="channels"):
        decode(out.getvalue(), 4)


def test_sixteen_bit_color_tiff():
    tifffile = pytest.importorskip("tifffile")
    out = io.BytesIO()
    tifffile.imwrite(out, smooth().astype(np.uint16) * 257, photometric="rgb")
    near(pixels(out.getvalue()), smooth(), 0)


def test_missing_tifffile_names_the_extra(monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    out = io.BytesIO()
    tifffile.imwrite(out, smooth(channels=5), photometric="minisblack", planarconfig="contig")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UserError, match=r"mimkit\[tiff\]"):
        decode(out.getvalue(), 5)


def test_a_header_is_read_without_the_pixels():
    assert header(PNG[:100]) == header(JPEG[: len(JPEG) // 2]) == (200, 300, 3)
    for name in ("empty.jpg", "text.jpg", "bomb.png", "one.png", "cut_header.jpg"):
        with pytest.raises(BadPicture):
            header(BAD[name][0])
    with pytest.raises(BadPicture):
        header(b"II*\0 damaged")


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_are_refused(name):
    data, reason = BAD[name]
    with pytest.raises(BadPicture, match=reason) as caught:
        decode(data, 3)
    assert 0 < len(str(caught.value)) < 140 and "\n" not in str(caught.value)


def test_a_truncated_jpeg_is_refused_wherever_it_ends():
    """torchvision alone would fill the rest with gray."""
    for part in (0.3, 0.6, 0.9, 0.99):
        with pytest.raises(BadPicture):
            decode(JPEG[: int(part * len(JPEG))], 3)
    padded = JPEG + b"\0" * 100
    near(pixels(padded), pixels(JPEG), 0)
    near(pixels(JPEG + b"trailing words of a camera"), pixels(JPEG), 2)
