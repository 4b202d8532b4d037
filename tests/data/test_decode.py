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
from mimkit.data.decode import BadPicture, Header, decode, header
from mimkit.data.reading import Reading
from mimkit.data.values import Storage

torch.set_num_threads(1)  # waiting threads cost more than they save on shared cores


def pixels(data: bytes, channels=3, dtype=torch.uint8, **reading) -> np.ndarray:
    """What `decode` gives to a set of this depth, channels last."""
    decoded = decode(data, Storage(channels, dtype), Reading(**reading))
    assert decoded.dtype == dtype and decoded.shape[0] == channels
    return decoded.permute(1, 2, 0).numpy()


def near(a: np.ndarray, b: np.ndarray, within: float) -> None:
    assert a.shape == b.shape
    difference = np.abs(a.astype(float) - b.astype(float)).max()
    assert difference <= within, difference


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
    stack = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    for plane, shown in enumerate((smooth()[..., :1], 255 - smooth()[..., :1])):
        near(pixels(stack, 1, plane=plane), shown, 0)
    with pytest.raises(BadPicture, match=r"stack of 2 planes .* --images\.plane 0"):
        decode(stack, Storage(1))
    with pytest.raises(BadPicture, match=r"none is number 2"):
        decode(stack, Storage(1), Reading(plane=2))


def png16(values: np.ndarray) -> bytes:
    """A 16-bit color PNG, written by hand because Pillow cannot."""
    height, width, _ = values.shape
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def test_sixteen_bits_keep_them():
    values = np.linspace(0, 65535, 40 * 56).reshape(40, 56).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        data = encoded(Image.fromarray(values), kind)
        assert header(data).dtype == "uint16"
        near(pixels(data, 1, torch.uint16), values[..., None], 0)
        near(pixels(data, 3, torch.uint16), values[..., None].repeat(3, -1), 0)
    color = np.dstack([values, values[::-1], values[:, ::-1]])
    near(pixels(png16(color), 3, torch.uint16), color, 0)
    near(pixels(png16(color), 3, torch.uint16, bands=(3, 1, 1)), color[..., [2, 0, 0]], 0)


def test_other_depths_in_a_set_of_eight_bits():
    """A 16-bit photograph keeps its look; one that ends at 12 bits, and any other depth, would be misread."""
    values = np.linspace(0, 65535, 40 * 56).reshape(40, 56).astype(np.uint16)
    near(pixels(encoded(Image.fromarray(values), "PNG"), 1), np.rint(values / 257)[..., None], 0)
    with pytest.raises(BadPicture, match="ends at 4095"):
        decode(encoded(Image.fromarray(values // 16), "PNG"), Storage(1))
    for dtype in (torch.uint16, torch.int16, torch.float32):
        with pytest.raises(BadPicture, match="is 8-bit, but the set is"):
            decode(PNG, Storage(3, dtype))


def test_float_tiff():
    values = smooth()[..., 0].astype(np.float32) * 40 - 10
    values[3, 3], values[5] = np.nan, -9999
    data = encoded(Image.fromarray(values), "TIFF")
    near(np.nan_to_num(pixels(data, 1, torch.float32), nan=7), np.nan_to_num(values, nan=7)[..., None], 0)
    holes = np.isnan(pixels(data, 1, torch.float32, nodata=-9999.0))[..., 0]
    assert np.array_equal(holes, np.isnan(values) | (values == -9999))
    with pytest.raises(BadPicture, match="is float, but the set is 8-bit"):
        decode(data, Storage(1))
    values[0, 0] = np.inf
    with pytest.raises(BadPicture, match="infinite"):
        decode(encoded(Image.fromarray(values), "TIFF"), Storage(1, torch.float32))


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
    data, dtype = out.getvalue(), torch.uint16 if kind is np.uint16 else torch.uint8
    if layout == "pages":  # nothing says what they are
        with pytest.raises(BadPicture, match="stack of 5 planes"):
            header(data)
        near(pixels(data, 1, dtype, plane=3), raw[..., 3:4], 0)
        near(decode(data, Storage(5, dtype), Reading(channels=5)).permute(1, 2, 0).numpy(), raw, 0)
    axes = {"interleaved": "YXS", "planes": "SYX", "imagej": "CYX", "pages": "CYX"}[layout]
    near(pixels(data, 5, dtype, axes=axes), raw, 0)
    assert header(data, Reading(axes=axes)) == Header(40, 56, 5, np.dtype(kind).name, axes=axes)
    near(pixels(data, 3, dtype, axes=axes, bands=(4, 3, 2)), raw[..., [3, 2, 1]], 0)
    with pytest.raises(BadPicture, match=r"has 5 bands, images\.bands 6"):
        decode(data, Storage(1, dtype), Reading(axes=axes, bands=(6,)))
    with pytest.raises(BadPicture, match="channels"):
        decode(data, Storage(4, dtype), Reading(axes=axes))


def test_sixteen_bit_color_tiff():
    tifffile = pytest.importorskip("tifffile")
    out = io.BytesIO()
    tifffile.imwrite(out, smooth().astype(np.uint16) * 257, photometric="rgb")
    near(pixels(out.getvalue(), 3, torch.uint16), smooth().astype(int) * 257, 0)


def test_missing_tifffile_names_the_extra(monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    out = io.BytesIO()
    tifffile.imwrite(out, smooth(channels=5), photometric="minisblack", planarconfig="contig")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UserError, match=r"mimkit\[tiff\]"):
        decode(out.getvalue(), Storage(5))


def test_a_header_is_read_without_the_pixels():
    assert header(PNG[:100]) == header(JPEG[: len(JPEG) // 2]) == Header(200, 300, 3, "uint8")
    for name in ("empty.jpg", "text.jpg", "bomb.png", "one.png", "cut_header.jpg"):
        with pytest.raises(BadPicture):
            header(BAD[name][0])
    with pytest.raises(BadPicture):
        header(b"II*\0 damaged")


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_are_refused(name):
    data, reason = BAD[name]
    with pytest.raises(BadPicture, match=reason) as caught:
        decode(data, Storage(3))
    assert 0 < len(str(caught.value)) < 140 and "\n" not in str(caught.value)


def test_a_truncated_jpeg_is_refused_wherever_it_ends():
    """torchvision alone would fill the rest with gray."""
    for part in (0.3, 0.6, 0.9, 0.99):
        with pytest.raises(BadPicture):
            decode(JPEG[: int(part * len(JPEG))], Storage(3))
    padded = JPEG + b"\0" * 100
    near(pixels(padded), pixels(JPEG), 0)
    near(pixels(JPEG + b"trailing words of a camera"), pixels(JPEG), 2)


def test_no_other_format_is_opened_whatever_a_file_is_called(monkeypatch):
    """An EPS called .jpg would reach Ghostscript."""
    eps = encoded(Image.fromarray(smooth()), "EPS")
    assert Image.open(io.BytesIO(eps)).format == "EPS"

    def ghostscript(*arguments, **settings):
        raise AssertionError("an interpreter was started")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", ghostscript)
    for kind, data in (
        ("EPS", eps),
        ("PDF", encoded(Image.fromarray(smooth()), "PDF")),
        ("ICO", b"\0\0\1\0" + b"\0" * 60),
    ):
        with pytest.raises(BadPicture, match="not a picture that can be read"):
            decode(data, Storage(3))
        with pytest.raises(BadPicture):
            header(data), kind


def test_a_small_file_that_takes_much_memory_is_refused():
    features = pytest.importorskip("PIL.features")
    if not features.check("jpg_2000"):
        pytest.skip("this Pillow has no JPEG 2000")
    small = encoded(Image.fromarray(np.zeros((64, 64, 3), np.uint8)), "JPEG2000")
    assert decode(small, Storage(3)).shape == (3, 64, 64)
    # Its header says 10,000 x 10,000: gigabytes while OpenJPEG decodes it.
    place = small.index(b"\xff\x51") + 8  # of the sizes in the SIZ marker
    sizes = struct.pack(">II", 10_000, 10_000)
    huge = bytearray(small)
    huge[place : place + 8] = sizes
    box = small.index(b"ihdr") + 4
    huge[box : box + 8] = sizes
    with pytest.raises(BadPicture, match=r"takes 3\.6 GB of memory to decode"):
        header(bytes(huge))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


BOMB = zlib.compress(bytes(1 << 28), 9)
FRAME = Image.new("L", (16_000, 16_000))
SMALL = encoded(Image.new("L", (64, 64)), "PNG")


@pytest.mark.parametrize(
    "data",
    [
        SMALL[:33] + chunk(b"zTXt", b"words\0\0" + BOMB) + SMALL[33:],
        SMALL[:33] + chunk(b"iCCP", b"colors\0\0" + BOMB) + SMALL[33:],
        SMALL[:33] + chunk(b"IDAT", BOMB) + SMALL[33:],
        # A canvas of 16 x 16 in which a frame of 256 million pixels lies.
        (gif := encoded(FRAME, "GIF"))[:6] + struct.pack("<HH", 16, 16) + gif[10:],
    ],
    ids=["PNG text", "PNG colors", "PNG pixels", "GIF frame"],
)
def test_what_inflates_without_end_is_refused_or_cut(data):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        header(data)
        assert decode(data, Storage(1)).shape == (1, 64, 64)  # what lies behind the pixels is not inflated
    except BadPicture as error:
        assert 0 < len(str(error)) < 140 and "\n" not in str(error)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_one_frame_is_decoded(kind):
    """However many there are."""
    frames = [Image.new("L", (400, 400), number) for number in range(40)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert header(data)[:2] == (400, 400) and decode(data, Storage(1)).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG2000", "AVIF", "WEBP"])
def test_formats_that_take_much_memory_have_bounds_of_their_own(kind, monkeypatch):
    data = encoded(Image.new("RGB", (3000, 3000)), kind)
    header(data)
    monkeypatch.setattr("mimkit.data.decode.LARGEST", 200_000_000)
    with pytest.raises(BadPicture, match="GB of memory to decode"):
        header(data)
