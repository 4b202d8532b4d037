"""No data: what lies under it changes no mean and no batch, whatever says that nothing was measured there."""

import numpy as np
import pytest
import torch
from PIL import Image

from mimkit.data.loader import Loader, Plan, ViewSettings, evaluation_batches, statistics
from mimkit.data.reading import Reading
from mimkit.data.sources import open_pictures
from mimkit.data.views import RandomResizedCrop

torch.set_num_threads(1)

SIDE, COUNT = 40, 12


def scenes() -> tuple[np.ndarray, np.ndarray]:
    """Twelve float pictures of 0..1000, and where they have no data: a corner, a stripe, single pixels."""
    generator = np.random.default_rng(0)
    values = generator.integers(0, 1000, (COUNT, SIDE, SIDE)).astype(np.float32)
    holes = np.zeros(values.shape, bool)
    for number in range(1, COUNT):
        holes[number, : 2 * number, : 3 * number] = True
    holes[3, :, 10:13] = True
    holes[5] |= generator.random((SIDE, SIDE)) < 0.1
    return values, holes


def write(folder, values: np.ndarray, holes: np.ndarray, under: object, dtype: type, tag: str | None = None) -> str:
    """TIFF files with these values where there are holes, and GDAL's note if `tag` is one."""
    tifffile = pytest.importorskip("tifffile")
    folder.mkdir()
    extra = [] if tag is None else [(42113, "s", 0, tag, True)]
    for number, (picture, hole) in enumerate(zip(values, holes, strict=True)):
        filled = np.where(hole, under, picture).astype(dtype)
        tifffile.imwrite(folder / f"{number:02d}.tif", filled, extratags=extra, photometric="minisblack")
    return str(folder)


def seen(data: str, reading: Reading, resident: bool) -> list[torch.Tensor]:
    """Mean and std, evaluated images and training batches of a set, with where they have data."""
    pictures = open_pictures([data], "all", reading)
    mean, std = statistics(pictures)
    view = RandomResizedCrop(scale=(0.3, 1.0))
    settings = ViewSettings(view=view, size=(16, 16), mean=mean, std=std)
    loader = Loader(pictures, settings, Plan(0, COUNT, 6, 6), resident=resident)
    batches = list(loader.micro_batches(0, 4))
    assert all(batch.images.isfinite().all() and batch.valid is not None for batch in batches)
    assert all((batch.images[~batch.valid] == 0).all() for batch in batches)
    shown = [images for images, _, _ in evaluation_batches(pictures, size=(16, 16), mean=mean, std=std)]
    trained = [tensor for batch in batches for tensor in (batch.images, batch.valid)]
    return [torch.tensor([mean, std]), *shown, *trained]


RANGE = Reading(value_range=(0.0, 1000.0))
KINDS = {
    "nan": (np.nan, np.float32, None, RANGE),
    "float number": (-9999, np.float32, None, Reading(value_range=(0.0, 1000.0), nodata=-9999.0)),
    "double tag": (-3.4e38, np.float64, "-3.4e38", RANGE),
    "tag nan": (np.nan, np.float32, "nan", RANGE),
    "int16 tag": (-9999, np.int16, "-9999", RANGE),
    "int16 number": (-1, np.int16, None, Reading(value_range=(0.0, 1000.0), nodata=-1.0)),
    "uint16 tag": (65535, np.uint16, "65535", RANGE),
    "int32 number": (-5, np.int32, None, Reading(value_range=(0.0, 1000.0), nodata=-5.0)),
}


@pytest.mark.parametrize("resident", [False, True], ids=["stream", "memory"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_mark_of_no_data_is_the_same(kind, resident, tmp_path):
    """The reference are the same pictures in float with another number in the holes."""
    values, holes = scenes()
    under, dtype, tag, reading = KINDS[kind]
    data = write(tmp_path / "set", values, holes, under, dtype, tag)
    reference = write(tmp_path / "reference", values, holes, 1e9, np.float32)
    expected = seen(reference, Reading(value_range=(0.0, 1000.0), nodata=1e9), resident)
    for tensor, other in zip(seen(data, reading, resident), expected, strict=True):
        assert torch.allclose(tensor.float(), other.float(), atol=1e-5), (tensor.float() - other.float()).abs().max()


def test_mean_and_std_are_those_of_the_pixels_with_data(tmp_path):
    values, holes = scenes()
    data = write(tmp_path / "set", values, holes, np.nan, np.float32)
    mean, std = statistics(open_pictures([data], "all", RANGE))
    measured = values[~holes].astype(np.float64) / 1000
    assert mean == pytest.approx((measured.mean(),), abs=1e-6) and std == pytest.approx((measured.std(),), abs=1e-6)


def test_black_and_white_are_those_of_the_pixels_with_data(tmp_path):
    values, holes = scenes()
    pictures = open_pictures([write(tmp_path / "set", values, holes, -9999, np.int16, "-9999")], "all")
    low, high = np.percentile(values[~holes], (0.1, 99.9))
    assert pictures.values.pairs == pytest.approx((low, high), abs=4)
    assert pictures.values.nodata == -9999 and pictures.resolved.nodata == -9999
    assert "signed 16-bit" in str(pictures.values) and "no data: -9999" in str(pictures.values)


def test_a_value_that_lies_apart_is_named(tmp_path):
    """Nobody said that -9999 is no data: it is taken for a value, with a word. Black borders and peaks are none."""
    values, holes = scenes()
    data = write(tmp_path / "set", values, holes, -9999, np.float32)
    assert "-9999 lies far from all others: if it is no data, give --images.nodata -9999" in str(
        open_pictures([data], "all").values
    )
    told = open_pictures([data], "all", Reading(nodata=-9999.0)).values
    assert told.apart is None and told.low[0] >= 0
    ordinary = write(tmp_path / "ordinary", values, holes, 0, np.uint16)
    assert open_pictures([ordinary], "all").values.apart is None


def test_a_hole_does_not_reach_into_what_lies_beside_it(tmp_path):
    """Resized pixels near a hole are means of what was measured alone."""
    values, holes = np.full((COUNT, SIDE, SIDE), 700, np.float32), scenes()[1]
    data = write(tmp_path / "set", values, holes, np.nan, np.float32)
    pictures = open_pictures([data], "all", RANGE)
    settings = ViewSettings(view=RandomResizedCrop(scale=(0.3, 1.0)), size=(16, 16), mean=(0.5,), std=(1.0,))
    for resident in (False, True):
        loader = Loader(pictures, settings, Plan(0, COUNT, COUNT, COUNT), resident=resident)
        (batch,) = loader.micro_batches(0, 1)
        assert not batch.valid.all() and torch.allclose(batch.images[batch.valid], torch.tensor(0.2), atol=1e-5)


def test_a_black_border_of_color_pictures(tmp_path):
    """A pixel of an 8-bit photograph has no data where all its colors are 0; a dark red one is a color."""
    picture = np.full((COUNT, SIDE, SIDE, 3), (90, 0, 0), np.uint8)
    picture[:, :, :9] = 0
    for number, pixels in enumerate(picture):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    pictures = open_pictures([str(tmp_path)], "all", Reading(nodata=0.0))
    mean, _ = statistics(pictures)
    assert mean == pytest.approx((90 / 255, 0, 0), abs=1e-6)
    assert pictures.values.levels(pictures.read(0)).isnan()[0].float().mean() == 9 / SIDE


def test_a_file_with_a_mark_of_its_own_is_refused_or_mapped(tmp_path):
    values, holes = scenes()
    marked = write(tmp_path / "marked", values, holes, -7, np.int16, "-7")
    write(tmp_path / "more", values[:1], holes[1:2], -9, np.int16, "-9")
    (tmp_path / "more" / "00.tif").rename(tmp_path / "marked" / "zz.tif")
    pictures = open_pictures([marked], "all", RANGE)
    assert pictures.storage.nodata == -7
    empty = pictures.values.levels(pictures.read(COUNT)).isnan()[0].numpy()
    assert np.array_equal(empty, holes[1])


def test_a_compression_that_tifffile_leaves_to_others(tmp_path):
    """GDAL's usual LZW: Pillow reads it, for whole pictures and for tiles, and the note of no data still holds."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    values = np.random.default_rng(0).integers(0, 200, (90, 70, 3)).astype(np.uint8)
    values[:30, :20] = 255
    notes = ImageFileDirectory_v2()
    notes[42113] = "255"
    Image.fromarray(values).save(tmp_path / "scene.tif", compression="tiff_lzw", tiffinfo=notes)
    whole = open_pictures([str(tmp_path)], "all")
    assert whole.storage.nodata == 255 and np.array_equal(whole.read(0).permute(1, 2, 0).numpy(), values)
    assert whole.values.levels(whole.read(0)).isnan()[0].sum() == 600
    tiled = open_pictures([str(tmp_path)], "all", Reading(tile=32))
    for number in range(len(tiled)):
        x, y = map(int, tiled.where(number).rpartition(" at ")[2].split(","))
        assert np.array_equal(tiled.read(number).permute(1, 2, 0).numpy(), values[y : y + 32, x : x + 32])
