"""TIFF: whatever way an array was written, it is read again as it was, whole and in boxes, or refused with a reason."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from mimkit.core.errors import UserError
from mimkit.data.decode import BadPicture, decode, decode_box, header
from mimkit.data.reading import Reading
from mimkit.data.sources import open_pictures
from mimkit.data.tiff import OnlyWhole
from mimkit.data.values import STORED, Storage

tifffile = pytest.importorskip("tifffile")
torch.set_num_threads(1)

RANDOM = np.random.default_rng(0)
HEIGHT, WIDTH = 40, 56
BOX = (5, 9, 20, 30)
try:
    import imagecodecs  # noqa: F401

    CODECS = True
except ImportError:
    CODECS = False


def numbers(*shape: int, dtype: type = np.uint16, most: int = 60_000) -> np.ndarray:
    if np.dtype(dtype).kind == "f":
        return RANDOM.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return RANDOM.integers(limits.min, min(most, limits.max), shape).astype(dtype)


def tiff(*arrays: np.ndarray, pages: tuple[dict, ...] = (), **settings) -> bytes:
    """A file by tifffile; several arrays one after the other, with settings for each."""
    out = io.BytesIO()
    opening = {key: settings.pop(key) for key in ("bigtiff", "byteorder", "ome", "imagej") if key in settings}
    with tifffile.TiffWriter(out, **opening) as writer:
        for number, array in enumerate(arrays):
            own = pages[number] if pages else {}
            writer.write(array, **{"photometric": "minisblack", **settings, **own})
    return out.getvalue()


def pillow(picture: Image.Image, **settings) -> bytes:
    out = io.BytesIO()
    picture.save(out, "TIFF", **settings)
    return out.getvalue()


def packed(data: bytes, *, bits: int, compression: int = 1, kind: int = 1, sign: int = 1) -> bytes:
    """A file of one strip, byte for byte, of what no library here writes."""
    tags = {256: WIDTH, 257: HEIGHT, 258: bits, 259: compression, 262: kind, 277: 1, 278: HEIGHT, 279: len(data)}
    tags |= {273: 8 + 2 + 12 * 10 + 4, 339: sign}
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags)) + bytes(4) + data


def gdal(nodata: str) -> dict:
    return {"extratags": [(42113, "s", 0, nodata, True)]}


def channels_first(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 0, 1)


GRAY, GRAY8, FLOATS = (
    numbers(HEIGHT, WIDTH),
    numbers(HEIGHT, WIDTH, dtype=np.uint8),
    numbers(HEIGHT, WIDTH, dtype=float),
)
FLOATS = FLOATS.astype(np.float32)
COLOR, COLOR8 = numbers(HEIGHT, WIDTH, 3), numbers(HEIGHT, WIDTH, 3, dtype=np.uint8)
STACK, BANDS = numbers(2, 3, 2, HEIGHT, WIDTH), numbers(HEIGHT, WIDTH, 13)
COLORS = numbers(3, 256, most=65_535)
NIBBLES, BITS12 = GRAY8 % 16, GRAY % 4096
EVEN, ODD = BITS12[:, ::2], BITS12[:, 1::2]
PACKED12 = np.stack([EVEN >> 4, (EVEN & 15) << 4 | ODD >> 8, ODD & 255], -1).astype(np.uint8).tobytes()
TILED = {"tile": (16, 16)}
SMALLER = ({}, {"subfiletype": 1}, {"subfiletype": 1})

VARIANTS = {
    # name: (bytes, channels first as they must be read, how it is read)
    "OME": (tiff(STACK, ome=True, metadata={"axes": "TZCYX"}), STACK[1, 2], {"plane": 5}),
    "OME channels": (tiff(STACK[0, 0], ome=True, metadata={"axes": "CYX"}), STACK[0, 0], {}),
    "OME color": (tiff(COLOR8, ome=True, photometric="rgb", metadata={"axes": "YXS"}), channels_first(COLOR8), {}),
    "ImageJ": (tiff(STACK, imagej=True, metadata={"axes": "TZCYX"}), STACK[1, 2], {"plane": 5}),
    "ImageJ float": (tiff(FLOATS, imagej=True), FLOATS[None], {}),
    "big": (tiff(GRAY, bigtiff=True), GRAY[None], {}),
    "big endian": (tiff(GRAY, byteorder=">"), GRAY[None], {}),
    "big endian float tiles": (tiff(FLOATS, byteorder=">", **TILED), FLOATS[None], {}),
    "deflate": (tiff(COLOR, photometric="rgb", compression="zlib"), channels_first(COLOR), {}),
    "deflate, predictor": (
        tiff(COLOR, photometric="rgb", compression="zlib", predictor=True),
        channels_first(COLOR),
        {},
    ),
    "LZMA": (tiff(GRAY, compression="lzma"), GRAY[None], {}),
    "LZW": (pillow(Image.fromarray(COLOR8), compression="tiff_lzw"), channels_first(COLOR8), {}),
    "LZW, 16 bits": (pillow(Image.fromarray(GRAY), compression="tiff_lzw"), GRAY[None], {}),
    "LZW, float": (pillow(Image.fromarray(FLOATS), compression="tiff_lzw"), FLOATS[None], {}),
    "LZW, signed": (
        pillow(Image.fromarray(GRAY), compression="tiff_lzw", tiffinfo={339: 2}),
        GRAY.astype(np.int16)[None],
        {},
    ),
    "deflate by Pillow": (pillow(Image.fromarray(GRAY), compression="tiff_adobe_deflate"), GRAY[None], {}),
    "PackBits": (pillow(Image.fromarray(COLOR8), compression="packbits"), channels_first(COLOR8), {}),
    "fax": (pillow(Image.fromarray(GRAY8 > 99), compression="group4"), (GRAY8 > 99)[None] * 255, {}),
    "bilevel": (tiff(GRAY8 > 99), (GRAY8 > 99)[None] * 255, {}),
    "white is zero": (tiff(GRAY8, photometric="miniswhite"), 255 - GRAY8[None], {}),
    "white is zero, 16 bits": (tiff(GRAY, photometric="miniswhite"), 65_535 - GRAY[None], {}),
    "white is zero, bilevel": (tiff(GRAY8 > 99, photometric="miniswhite"), (GRAY8 <= 99)[None] * 255, {}),
    "palette": (tiff(GRAY8, photometric="palette", colormap=COLORS), COLORS[:, GRAY8] // 256, {}),
    "palette with a value for none": (
        tiff(GRAY8, photometric="palette", colormap=COLORS, **gdal("0")),
        COLORS[:, GRAY8] // 256,
        {},
    ),
    "palette of 8 bits": (
        tiff(GRAY8, photometric="palette", colormap=COLORS // 256),
        COLORS[:, GRAY8] // 256,
        {},
    ),
    "inks": (
        pillow(Image.fromarray(255 - np.dstack([COLOR8, np.full_like(GRAY8, 255)]), "CMYK")),
        channels_first(COLOR8),
        {},
    ),
    "gray and alpha": (pillow(Image.merge("LA", [Image.fromarray(GRAY8)] * 2)), GRAY8[None], {}),
    "color and alpha, 16 bits": (
        tiff(BANDS[..., :4], photometric="rgb", planarconfig="contig", extrasamples=[2]),
        channels_first(BANDS[..., :3]),
        {},
    ),
    "color and infrared": (
        tiff(BANDS[..., :4], photometric="rgb", planarconfig="contig", extrasamples=[0]),
        channels_first(BANDS[..., :4]),
        {},
    ),
    "4 bits": (packed((NIBBLES[:, ::2] << 4 | NIBBLES[:, 1::2]).tobytes(), bits=4), NIBBLES[None] * 17, {}),
    "12 bits": (packed(PACKED12, bits=12), BITS12[None], {}),
    "13 bands": (tiff(BANDS, planarconfig="contig"), channels_first(BANDS), {}),
    "13 planes": (tiff(channels_first(BANDS), planarconfig="separate"), channels_first(BANDS), {}),
    "13 planes in tiles": (
        tiff(channels_first(BANDS), planarconfig="separate", compression="zlib", predictor=True, **TILED),
        channels_first(BANDS),
        {},
    ),
    "three of 13 bands": (
        tiff(BANDS, planarconfig="contig"),
        channels_first(BANDS)[[3, 2, 1]],
        {"bands": (4, 3, 2)},
    ),
    "pyramid below": (
        tiff(GRAY, GRAY[::2, ::2], pages=({"subifds": 1}, {"subfiletype": 1}), **TILED),
        GRAY[None],
        {},
    ),
    "pyramid behind": (tiff(GRAY, GRAY[::2, ::2], GRAY[::4, ::4], pages=SMALLER, **TILED), GRAY[None], {}),
    "thumbnail before": (tiff(GRAY[::2, ::2], GRAY, pages=SMALLER[1::-1]), GRAY[None], {}),
    "another size behind": (tiff(GRAY, GRAY[:20, :30]), GRAY[None], {}),
    "pages without notes": (tiff(*STACK[0, :, 0], metadata=None), STACK[0, 2, :1], {"plane": 2}),
    "pages that each have notes": (tiff(*STACK[0, :, 0], contiguous=False), STACK[0, 2, :1], {"plane": 2}),
    **{
        np.dtype(kind).name: (tiff(array := numbers(HEIGHT, WIDTH, dtype=kind, most=1 << 20)), array[None], {})
        for kind in (np.int8, np.int16, np.int32, np.uint32, np.int64, np.float16, np.float64)
    },
    # Notes that no value of the type can be say nothing.
    "8 bits without -9999": (tiff(GRAY8, **gdal("-9999")), GRAY8[None], {}),
    "16 bits without NaN": (tiff(GRAY, **gdal("nan")), GRAY[None], {}),
    "16 bits without 1.5": (tiff(GRAY, **gdal("1.5")), GRAY[None], {}),
    "16 bits without words": (tiff(GRAY, **gdal("none")), GRAY[None], {}),
}


PILLOWS = {"inks", "4 bits"} | (
    {"LZW", "LZW, 16 bits", "LZW, signed", "LZW, float", "fax", "12 bits"} if not CODECS else set()
)


def storage(data: bytes, reading: Reading) -> Storage:
    about = header(data, reading)
    return Storage(about.channels, STORED[about.dtype], about.nodata)


@pytest.mark.parametrize("name", VARIANTS)
def test_arrays_are_read_as_they_were_written(name, capfd):
    data, expected, settings = VARIANTS[name]
    reading = Reading(**settings)
    pixels = decode(data, storage(data, reading), reading).numpy()
    assert pixels.shape == (header(data, reading).channels, HEIGHT, WIDTH) == expected.shape
    assert np.array_equal(pixels, expected.astype(pixels.dtype))
    try:
        box = decode_box(io.BytesIO(data), BOX, storage(data, reading), reading).numpy()
        plane = decode_box(io.BytesIO(data), None, storage(data, reading), reading).numpy()
    except OnlyWhole:
        assert name in PILLOWS
    else:
        row, column, height, width = BOX
        assert np.array_equal(box, pixels[:, row : row + height, column : column + width])
        assert np.array_equal(plane, pixels)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["LZW, 16 bits", "inks", "OME", "13 planes in tiles", "pages that each have notes"])
def test_files_are_read_in_tiles(name, tmp_path):
    """Also those of which no box can be read alone."""
    data, expected, settings = VARIANTS[name]
    (tmp_path / "a.tif").write_bytes(data)
    tiles = open_pictures([str(tmp_path)], "all", Reading(tile=20, **settings))
    whole = open_pictures([str(tmp_path)], "all", Reading(**settings))
    assert np.array_equal(whole.read(0).numpy(), expected)
    for number in range(len(tiles)):
        column, row = map(int, tiles.where(number).rpartition(" at ")[2].split(","))
        assert np.array_equal(tiles.read(number).numpy(), expected[:, row : row + 20, column : column + 20])


INKS16 = tiff(BANDS[..., :4], photometric="separated", planarconfig="contig")
REFUSED = {
    "complex": (tiff(FLOATS.astype(np.complex64)), {}, "holds values of the type complex64"),
    "palette of floats": (packed(FLOATS.tobytes(), bits=32, kind=3, sign=3), {}, "has a palette for .* type float32"),
    "stack": (tiff(STACK, ome=True, metadata={"axes": "TZCYX"}), {}, r"6 planes .axes TZCYX.: give --images.plane 0$"),
    "pages": (tiff(*STACK[0, :, 0], metadata=None), {}, r"3 planes .* or --images\.axes CYX if they are channels"),
    "own notes": (tiff(*STACK[0, :, 0], contiguous=False), {}, r"stack of 3 planes: give --images\.plane 0"),
    "past the end": (tiff(*STACK[0, :, 0], contiguous=False), {"plane": 3}, "has 3 planes, none is number 3"),
    "16-bit inks": (INKS16, {}, "holds colors as CMYK: convert it to RGB"),
    "infrared": (VARIANTS["color and infrared"][0], {"channels": 3}, r"4 channels instead of 3: .* --images\.bands"),
    "infrared, 8 bits": (
        tiff(np.dstack([COLOR8, GRAY8]), photometric="rgb", planarconfig="contig", extrasamples=[0]),
        {"channels": 3},
        r"has 4 channels instead of 3: choose with --images\.bands",
    ),
    "another file": (
        tiff(STACK[0, :, 0], ome=True, metadata={"axes": "ZYX"}).replace(b'SizeZ="3"', b'SizeZ="9"'),
        {"plane": 6},
        "its plane lies in another file",
    ),
    "bomb": (packed(zlib.compress(bytes(1 << 29)), bits=8, compression=8), {"plane": 0}, "more than 4,480 bytes"),
    "truncated": (tiff(GRAY, compression="zlib")[:3000], {}, "truncated"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_right_is_refused(name):
    data, settings, reason = REFUSED[name]
    reading = Reading(**settings)
    with pytest.raises(BadPicture, match=reason) as caught:
        about = header(data, reading)
        decode(data, Storage(reading.channels or about.channels, STORED[about.dtype]), reading)
    assert len(str(caught.value)) < 140 and "\n" not in str(caught.value)


@pytest.mark.skipif(CODECS, reason="imagecodecs is installed")
def test_what_needs_imagecodecs_says_so():
    """Pillow reads the pages of a stack as well, but not 16-bit colors."""
    pages = [Image.fromarray(page) for page in STACK[0, :, 0]]
    data = pillow(pages[0], compression="tiff_lzw", save_all=True, append_images=pages[1:])
    assert np.array_equal(decode(data, Storage(1, torch.uint16), Reading(plane=2)).numpy(), STACK[0, 2, :1])
    colors = tiff(COLOR, photometric="rgb").replace(
        struct.pack("<HHIHH", 259, 3, 1, 1, 0), b"\x03\x01\3\0\1\0\0\0\5\0\0\0"
    )
    with pytest.raises(BadPicture, match="is packed as LZW: pip install imagecodecs"):
        decode(colors, Storage(3, torch.uint16))


DEEP = [
    "13 bands",
    "color and alpha, 16 bits",
    "ImageJ",
    "float64",
    "int8",
    "white is zero, 16 bits",
    "palette of 8 bits",
]


@pytest.mark.parametrize("name", VARIANTS)
def test_without_tifffile_pillow_is_right_or_the_extra_is_named(name, monkeypatch):
    data, expected, settings = VARIANTS[name]
    reading, held = Reading(**settings), storage(data, Reading(**settings))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    try:
        header(data, reading)
        pixels = decode(data, held, reading).numpy()
    except UserError as error:
        assert "pip install 'mimkit[tiff]'" in str(error)
    else:
        assert name not in DEEP and np.array_equal(pixels, expected)


def test_a_file_of_many_planes_is_read_in_part(tmp_path, monkeypatch):
    """A plane of a large stack does not read the others."""
    stack = numbers(50, 100, 100)
    (tmp_path / "a.tif").write_bytes(tiff(stack, metadata={"axes": "ZYX"}, ome=True))
    pictures = open_pictures([str(tmp_path)], "all", Reading(plane=40))
    monkeypatch.setattr(type(pictures), "data", lambda *_: pytest.fail("reads all of the file"))
    assert np.array_equal(pictures.read(0)[0].numpy(), stack[40])


def test_each_band_has_its_holes_where_values_have_signs():
    """GDAL notes one value for all bands; which pixels have it differs."""
    bands = numbers(HEIGHT, WIDTH, 4, dtype=np.int16)
    bands[:9, :, 0] = bands[:, :7, 2] = -32_768
    data = tiff(bands, planarconfig="contig", **gdal("-32768"))
    assert header(data).nodata == -32_768
    floats = tiff(bands.astype(np.float64), planarconfig="contig", **gdal("-32768"))
    holes = decode(floats, Storage(4, torch.float32)).isnan().numpy()
    assert np.array_equal(holes, channels_first(bands == -32_768))
    white = tiff(GRAY8, photometric="miniswhite", **gdal("0"))
    assert header(white).nodata == 255 and np.array_equal(decode(white, Storage(1, nodata=255.0))[0], 255 - GRAY8)
