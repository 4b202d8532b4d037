"""Depth: values of any type reach the normalized image as NumPy computes them, by every way that leads there."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from mimkit.api.preprocess import Preprocess
from mimkit.core.errors import UserError
from mimkit.data.decode import BadPicture, decode, header
from mimkit.data.loader import Loader, Plan, ViewSettings, evaluation_batches, statistics
from mimkit.data.reading import Reading
from mimkit.data.sources import open_pictures
from mimkit.data.values import Storage, Values, given_values, measured_values
from mimkit.data.views import CenterCrop, Whole
from mimkit.evaluate.target import Extractor

tifffile = pytest.importorskip("tifffile")
torch.set_num_threads(1)

COUNT, SIDE = 6, 24
RANGES = {np.uint16: (80.0, 4095.0), np.int16: (-1000.0, 2000.0), np.float32: (-0.5, 3.25)}
TORCH = {np.uint16: torch.uint16, np.int16: torch.int16, np.float32: torch.float32}


def raw_pictures(dtype: type, channels: int) -> np.ndarray:
    """(n, H, W, C) with values in and somewhat beyond the range."""
    low, high = RANGES[dtype]
    generator = np.random.default_rng(channels)
    least = max(low - 0.1 * (high - low), 0) if dtype is np.uint16 else low - 0.1 * (high - low)
    return generator.uniform(least, high * 1.1, (COUNT, SIDE, SIDE, channels)).astype(dtype)


def tiff(picture: np.ndarray) -> bytes:
    out = io.BytesIO()
    if picture.shape[2] == 1:
        tifffile.imwrite(out, picture[..., 0], photometric="minisblack")
    else:
        kind = "rgb" if picture.shape[2] == 3 else "minisblack"
        tifffile.imwrite(out, picture, photometric=kind, planarconfig="contig")
    return out.getvalue()


def expected(raw: np.ndarray, dtype: type) -> np.ndarray:
    """0 to 1 from black to white (n, C, H, W), in float64."""
    low, high = RANGES[dtype]
    return np.clip((raw.astype(np.float64) - low) / (high - low), 0, 1).transpose(0, 3, 1, 2)


@pytest.fixture(params=[(dtype, channels) for dtype in RANGES for channels in (1, 2, 3, 13)], ids=str)
def stored(request, tmp_path):
    """Files of a type and number of channels, what they should become, and how they are read."""
    dtype, channels = request.param
    raw = raw_pictures(dtype, channels)
    (tmp_path / "set").mkdir()
    for number, picture in enumerate(raw):
        (tmp_path / "set" / f"{number}.tif").write_bytes(tiff(picture))
    return str(tmp_path / "set"), expected(raw, dtype), Reading(value_range=RANGES[dtype]), raw


def test_every_way_gives_what_numpy_computes(stored, tmp_path):
    """In memory, streamed, evaluated, from Parquet, by path and by array: within 1e-6 of the range."""
    data, shares, reading, raw = stored
    channels = shares.shape[1]
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    column = pa.array([{"bytes": tiff(picture), "path": None} for picture in raw])
    pq.write_table(pa.table({"image": column}), tmp_path / "set.parquet")
    normal = dict(mean=(0.25,) * channels, std=(0.5,) * channels)
    reference = (shares - 0.25) / 0.5
    for source in (data, str(tmp_path / "set.parquet")):
        pictures = open_pictures([source], "all", reading)
        assert pictures.storage == Storage(channels, TORCH[raw.dtype.type])
        ((images, _, numbers),) = evaluation_batches(
            pictures, size=(SIDE, SIDE), view=CenterCrop(fraction=1.0), **normal
        )
        assert np.abs(images.numpy() - reference[numbers]).max() <= 2e-6
        for resident in (True, False):
            views = ViewSettings(view=Whole(flip=0.0), size=(SIDE, SIDE), **normal)
            loader = Loader(pictures, views, Plan(0, COUNT, COUNT, COUNT), resident=resident)
            (batch,) = loader.micro_batches(0, 1)
            assert loader.resident == resident
            assert np.abs(batch.images.numpy() - reference[batch.index]).max() <= 2e-6
    extractor = Extractor(
        name="x", size=(SIDE, SIDE), channels=channels, fingerprint="", reading=pictures.resolved, **normal
    )
    preprocess = Preprocess(extractor)
    for number in range(COUNT):
        by_path, by_array = preprocess(f"{data}/{number}.tif"), preprocess(raw[number])
        assert np.abs(by_path.numpy() - reference[number]).max() <= 2e-6 and torch.equal(by_path, by_array)


def test_resizing_is_that_of_floats(stored):
    """Crops are resized as numbers, not as bytes, alike in memory and in the stream."""
    data, shares, reading, _ = stored
    channels = shares.shape[1]
    pictures = open_pictures([data], "all", reading)
    normal = dict(mean=(0.0,) * channels, std=(1.0,) * channels)
    reference = torch.nn.functional.interpolate(
        torch.from_numpy(shares), (10, 14), mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 1)
    for resident in (True, False):
        views = ViewSettings(view=Whole(flip=0.0), size=(10, 14), **normal)
        (batch,) = Loader(pictures, views, Plan(0, COUNT, COUNT, COUNT), resident=resident).micro_batches(0, 1)
        assert (batch.images.double() - reference[batch.index]).abs().max() <= 2e-6


def test_mean_and_std_are_exact(stored):
    data, shares, reading, _ = stored
    mean, std = statistics(open_pictures([data], "all", reading))
    assert np.allclose(mean, shares.mean((0, 2, 3)), atol=1e-6) and np.allclose(std, shares.std((0, 2, 3)), atol=1e-6)


def test_black_and_white_come_from_the_data(tmp_path):
    """Twelve bits in sixteen: all of them are seen, and the words say so."""
    for number in range(40):
        values = np.random.default_rng(number).integers(0, 4096, (32, 32)).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / f"{number:02d}.png")
    pictures = open_pictures([str(tmp_path)], "all")
    low, high = pictures.values.pairs
    assert 0 <= low <= 12 and 4083 <= high <= 4095
    levels = torch.stack([pictures.values.levels(pictures.read(i)) for i in range(40)])
    assert len(levels.unique()) > 4000
    assert str(pictures.values).startswith("16-bit, uses ") and f"scaled by {low:g} to {high:,g}" in str(
        pictures.values
    )
    again = open_pictures([str(tmp_path)], "all", pictures.resolved)
    assert again.values == pictures.values and again.read_as(pictures.resolved)


def test_each_channel_has_a_range_of_its_own(tmp_path):
    values = np.random.default_rng(0).uniform(0, 1, (8, 32, 32, 4)) * [100, 1000, 10_000, 60_000]
    for number, picture in enumerate(values.astype(np.uint16)):
        (tmp_path / f"{number}.tif").write_bytes(tiff(picture))
    pictures = open_pictures([str(tmp_path)], "all")
    assert np.allclose(pictures.values.high, [100, 1000, 10_000, 60_000], rtol=0.02)
    assert len(pictures.values.pairs) == 8
    pairs = (0.0, 50.0, 0.0, 500.0, 0.0, 5000.0, 0.0, 30_000.0)
    halved = open_pictures([str(tmp_path)], "all", Reading(value_range=pairs))
    levels = halved.values.levels(halved.read(0)) / 255
    assert np.allclose(levels, np.clip(values[0].astype(np.uint16) / pairs[1::2], 0, 1).transpose(2, 0, 1), atol=1e-6)
    with pytest.raises(UserError, match=r"images\.value_range has 6 numbers: give 2, or 2 for each of 4 channels"):
        open_pictures([str(tmp_path)], "all", Reading(value_range=pairs[:6])).values  # noqa: B018


def test_eight_bits_stay_as_they_are():
    reading = Reading(value_range=(80.0, 4095.0))
    plain = given_values(reading, Storage(3))
    assert plain is not None and plain.plain
    narrow = given_values(Reading(value_range=(10.0, 200.0)), Storage(1))
    assert narrow is not None and narrow.pairs == (10.0, 200.0)


def test_a_range_that_does_nothing_is_said(tmp_path):
    """8-bit pictures stay as they are under the range of another depth, and the line of the data says so."""
    Image.fromarray(np.full((16, 16), 7, np.uint8)).save(tmp_path / "a.png")
    lines = [
        open_pictures([str(tmp_path)], "all", Reading(value_range=ends)).about_values
        for ends in (None, (0.0, 255.0), (0.0, 4095.0))
    ]
    assert lines[:2] == ["", ""]
    assert "taken as they are" in lines[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"axes": "QQ"}, "images.axes are different letters"),
        ({"value_range": (5.0, 1.0)}, "images.value_range must be pairs"),
        ({"bands": (0,)}, "images.bands are counted from 1"),
        ({"bands": (1, 2), "channels": 3}, "leave images.channels away"),
        ({"plane": -1}, "images.plane"),
        ({"tile": 3}, "images.tile"),
    ],
)
def test_a_reading_that_cannot_be_is_refused(tmp_path, settings, message):
    Image.fromarray(np.full((16, 16), 7, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=message):
        open_pictures([str(tmp_path)], "all", Reading(**settings)).read(0)


@given(
    arrays.arrays(np.float32, (2, 5, 5), elements=st.floats(-1e4, 1e4, width=32)),
    st.sampled_from(["none", "log", "sqrt"]),
    st.floats(-100, 100),
    st.floats(1, 1000),
)
@settings(max_examples=60, deadline=None)
def test_transforms_are_what_they_say(raw, transform, low, span):
    values = Values(dtype=torch.float32, low=(low,), high=(low + span,), transform=transform)
    share = np.clip((raw.astype(np.float64) - np.float32(low)) / (np.float32(low + span) - np.float32(low)), 0, 1)
    curve = {
        "none": share,
        "sqrt": np.sqrt(share),
        "log": np.log1p(share * span) / np.log1p(span),
    }[transform]
    levels = values.levels(torch.from_numpy(raw))
    assert levels.min() >= 0 and levels.max() <= 255
    # A root is steep at 0, where float32 has little left of large numbers.
    assert np.abs(levels.numpy() / 255 - curve).max() < (5e-3 if transform == "sqrt" else 1e-4)


def test_a_set_of_one_value_has_a_range():
    raw = [torch.full((1, 16, 16), 7, dtype=torch.int16)] * 3
    assert measured_values(raw, Reading(), Storage(1, torch.int16)).pairs == (7.0, 8.0)
    holes = [torch.full((1, 16, 16), torch.nan)] * 3
    assert measured_values(holes, Reading(), Storage(1, torch.float32)).pairs == (0.0, 1.0)


def test_a_plane_that_is_not_there_is_refused():
    file = io.BytesIO()
    Image.fromarray(np.full((16, 16), 7, np.uint8)).save(file, "PNG")
    for read in (
        lambda: header(file.getvalue(), Reading(plane=1)),
        lambda: decode(file.getvalue(), Storage(1), Reading(plane=1)),
    ):
        with pytest.raises(BadPicture, match=r"lower --images\.plane"):
            read()


def test_a_float_picture_is_not_changed_by_its_levels():
    picture = torch.linspace(0, 1, 12).view(1, 3, 4)
    before = picture.clone()
    levels = Values(dtype=torch.float32, low=(0.0,), high=(0.5,)).levels(picture)
    assert torch.equal(picture, before) and levels.max() == 255
