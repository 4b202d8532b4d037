"""Tiles: each is the part of the picture that it says, cover it whole, and read no more of a file than they need."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mimkit.data.decode import decode_box
from mimkit.data.loader import Loader, Plan, ViewSettings
from mimkit.data.reading import Reading
from mimkit.data.sources import open_pictures
from mimkit.data.tiles import Tiled, tiles
from mimkit.data.values import Storage
from mimkit.data.views import Whole

torch.set_num_threads(1)


@given(st.integers(8, 400), st.integers(8, 400), st.integers(8, 150))
def test_tiles_cover_the_picture_and_lie_inside(height, width, side):
    boxes = tiles(height, width, side)
    covered = torch.zeros(height, width, dtype=torch.bool)
    for top, left, tall, wide in boxes.tolist():
        assert top >= 0 and left >= 0 and top + tall <= height and left + wide <= width
        assert tall == min(side, height) and wide == min(side, width)
        covered[top : top + tall, left : left + wide] = True
    assert covered.all()
    assert len(boxes) == -(-height // side) * -(-width // side)


@pytest.fixture
def slides(tmp_path):
    """Large pictures in two class folders: PNG, TIFF in tiles, in strips, plain; one is smaller than a tile."""
    tifffile = pytest.importorskip("tifffile")
    generator = np.random.default_rng(0)
    raw = {}
    for name, sides in {"a/1.tif": (150, 90), "a/2.tif": (64, 200), "b/3.tif": (100, 100), "b/4.tif": (20, 30)}.items():
        raw[name] = generator.integers(0, 65535, sides).astype(np.uint16)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        more = {"a/1.tif": {"tile": (32, 48)}, "a/2.tif": {"rowsperstrip": 7, "compression": "zlib"}}.get(name, {})
        tifffile.imwrite(tmp_path / name, raw[name], photometric="minisblack", **more)
    return tmp_path, raw


def test_each_tile_is_its_part_of_the_picture(slides):
    folder, raw = slides
    pictures = open_pictures([str(folder)], "all", Reading(tile=48, value_range=(0.0, 65535.0)))
    assert isinstance(pictures, Tiled) and pictures.classes == ("a", "b")
    assert len(pictures) == 4 * 2 + 2 * 5 + 3 * 3 + 1
    for number in range(len(pictures)):
        path, _, place = pictures.where(number).rpartition(" at ")
        left, top = map(int, place.split(","))
        height, width = pictures.size(number)
        whole = raw[str(path)[len(str(folder)) + 1 :]]
        assert np.array_equal(pictures.read(number)[0].numpy(), whole[top : top + height, left : left + width])
        assert pictures.classes[int(pictures.labels[number])] == path.split("/")[-2]


def test_memory_and_stream_train_on_tiles_alike(slides):
    folder, _ = slides
    (folder / "b" / "4.tif").unlink()
    pictures = open_pictures([str(folder)], "all", Reading(tile=48, value_range=(0.0, 65535.0)))
    settings = ViewSettings(view=Whole(flip=0.0), size=(48, 48), mean=(0.5,), std=(0.3,))
    batches = [
        next(iter(Loader(pictures, settings, Plan(0, len(pictures), 9, 9), resident=resident).micro_batches(0, 1)))
        for resident in (True, False)
    ]
    assert torch.allclose(batches[0].images, batches[1].images, atol=1e-6)


def test_pictures_are_split_and_not_their_tiles(slides):
    folder, _ = slides
    for number in range(6):
        for name in "ab":
            Image.fromarray(np.full((100, 100), 20 * number, np.uint16)).save(folder / name / f"more{number}.png")
    places = {}
    for split in ("train", "test"):
        pictures = open_pictures([str(folder)], split, Reading(tile=48))
        places[split] = {pictures.where(number).rpartition(" at ")[0] for number in range(len(pictures))}
    assert places["train"] and places["test"] and not places["train"] & places["test"]


class Counted(io.BytesIO):
    """A file that counts the bytes that are read."""

    count = 0

    def read(self, size=-1):
        data = super().read(size)
        self.count += len(data)
        return data

    def readinto(self, buffer):
        size = super().readinto(buffer)
        self.count += size
        return size


KINDS = {
    "tiles": {"tile": (64, 64)},
    "strips": {"rowsperstrip": 8},
    "deflated": {"tile": (64, 64), "compression": "zlib", "predictor": True},
    "planes": {"tile": (64, 64), "planarconfig": "separate"},
    "one strip": {},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_box_of_a_large_file_reads_little_of_it(kind):
    tifffile = pytest.importorskip("tifffile")
    picture = np.random.default_rng(0).integers(0, 60_000, (1000, 700, 3)).astype(np.uint16)
    out = io.BytesIO()
    planes = picture.transpose(2, 0, 1) if kind == "planes" else picture
    tifffile.imwrite(out, planes, photometric="rgb", **KINDS[kind])
    file = Counted(out.getvalue())
    box = (333, 290, 90, 70)
    cut = decode_box(file, box, Storage(3, torch.uint16), Reading(tile=64))
    assert np.array_equal(cut.permute(1, 2, 0).numpy(), picture[333:423, 290:360])
    assert file.count < 0.25 * len(out.getvalue())


def test_a_box_of_a_plane_of_a_stack():
    tifffile = pytest.importorskip("tifffile")
    stack = np.random.default_rng(0).integers(0, 60_000, (5, 2, 200, 300)).astype(np.uint16)
    for imagej in (True, False):
        out = io.BytesIO()
        tifffile.imwrite(out, stack, imagej=imagej, photometric="minisblack", metadata={"axes": "ZCYX"})
        reading = Reading(plane=3, axes="ZCYX", channels=2)
        cut = decode_box(io.BytesIO(out.getvalue()), (10, 20, 64, 32), Storage(2, torch.uint16), reading)
        assert np.array_equal(cut.numpy(), stack[3, :, 10:74, 20:52])


def test_a_picture_has_the_mean_of_its_tiles(slides, tmp_path):
    """In evaluation and in embeddings."""
    from mimkit.api.embed import embed
    from mimkit.data.loader import statistics
    from mimkit.evaluate.features import extract
    from mimkit.evaluate.target import open_target

    folder, raw = slides
    reading = Reading(tile=48, value_range=(0.0, 65535.0))
    pictures = open_pictures([str(folder)], "all", reading)
    mean, std = statistics(pictures)
    extractor = open_target("pixels", size=(8, 8), channels=1, mean=mean, std=std)
    features = extract(extractor, pictures, device="cpu", batch_size=5)
    assert len(features) == 4 and features.labels.tolist() == [0, 0, 1, 1]
    pictures.owners, owners = None, pictures.owners
    alone = extract(extractor, pictures, device="cpu").values["pixels"]
    for number in range(4):
        assert torch.allclose(features.values["pixels"][number], alone[owners == number].mean(0), atol=1e-5)
    embeddings = embed("pixels", [str(folder)], reading=reading, batch_size=5)
    assert [path.removeprefix(str(folder) + "/") for path in embeddings.paths] == sorted(raw)
