"""Preprocessing in Python is that of evaluation, bit for bit, whatever holds the picture."""

import numpy as np
import pytest
import torch
from PIL import Image

import mimkit
from builders import structured
from mimkit.api.preprocess import Preprocess
from mimkit.data.loader import evaluation_batches
from mimkit.data.reading import Reading
from mimkit.data.sources import open_pictures
from mimkit.evaluate.target import Extractor


def extractor(size: tuple[int, int] = (28, 28), channels: int = 3, **settings: object) -> Extractor:
    middle = (0.4,) * channels
    return Extractor(name="x", size=size, channels=channels, mean=middle, std=middle, fingerprint="", **settings)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Files of several kinds and sizes: turned, gray, with alpha, a palette, 16 bits."""
    folder = tmp_path_factory.mktemp("mixed")
    picture = Image.fromarray(structured(1, 200)[:150])
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "1.jpg", quality=90)
    picture.save(folder / "2.jpg", exif=exif)
    picture.save(folder / "3.png")
    picture.convert("L").save(folder / "4.png")
    picture.convert("RGBA").save(folder / "5.png")
    picture.quantize(64).save(folder / "6.png")
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(folder / "7.png")
    picture.resize((40, 90)).save(folder / "8.webp", lossless=True)
    return folder


@pytest.mark.parametrize(("size", "channels"), [((28, 28), 3), ((28, 28), 1), ((160, 160), 3), ((32, 64), 3)])
def test_files_and_pillow_are_what_evaluation_sees(mixed, size, channels):
    looked_at = extractor(size, channels)
    pictures = open_pictures([str(mixed)], "all", channels=channels)
    settings = dict(size=size, mean=looked_at.mean, std=looked_at.std, view=looked_at.view)
    ((images, _, numbers),) = evaluation_batches(pictures, **settings)
    assert len(images) == 8
    preprocess = Preprocess(looked_at)
    for image, number in zip(images, numbers.tolist(), strict=True):
        path = pictures.where(number)
        assert torch.equal(preprocess(path), image), path
        if not path.endswith(".jpg"):  # whose decoder is torchvision's
            assert torch.equal(preprocess(Image.open(path)), image), path


def test_arrays_are_the_files_of_their_values(mixed):
    preprocess, gray = Preprocess(extractor()), Preprocess(extractor(channels=1))
    color = np.asarray(Image.open(mixed / "3.png"))
    assert torch.equal(preprocess(color), preprocess(mixed / "3.png"))
    assert torch.equal(gray(color), Preprocess(extractor(channels=1))(torch.from_numpy(color.copy()).numpy()))
    flat = np.asarray(Image.open(mixed / "4.png"))
    assert torch.equal(preprocess(flat), preprocess(mixed / "4.png"))
    assert torch.equal(gray(flat), gray(mixed / "4.png")) and torch.equal(gray(flat[:, :, None]), gray(flat))
    assert torch.equal(preprocess(np.dstack([color, flat])), preprocess(color))  # without alpha
    deep = np.asarray(Image.open(mixed / "7.png")).astype(np.uint16)
    assert torch.equal(gray(deep), gray(mixed / "7.png"))
    assert torch.equal(gray(deep.astype(np.float32) / 65535), gray(deep))
    ranged = Preprocess(extractor(channels=1, reading=Reading(channels=1, value_range=(0.0, 4095.0))))
    assert torch.equal(ranged(deep // 16), ranged(np.minimum(deep // 16, 4095)))


def test_a_set_in_memory_of_the_models_size_is_the_same(forty):
    pictures = open_pictures(["photos"], "test")
    looked_at = extractor((48, 48))
    ((images, _, _),) = evaluation_batches(
        pictures, size=(48, 48), mean=looked_at.mean, std=looked_at.std, view=looked_at.view, limit=4
    )
    numbers = next(iter(evaluation_batches(pictures, size=(48, 48), mean=(0,) * 3, std=(1,) * 3, limit=4)))[2]
    for image, number in zip(images, numbers.tolist(), strict=True):
        array = pictures.read(number).permute(1, 2, 0).numpy()
        torch.testing.assert_close(Preprocess(looked_at)(array), image, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (np.zeros((3, 40, 40), np.uint8), "has 40 channels in its last axis instead of 3"),
        (np.zeros((40, 40), np.int64), "whose black and white nobody knows"),
        (np.zeros((4, 4, 3), np.uint8), "smaller than 8 pixels"),
        (np.zeros((2, 40, 40, 3), np.uint8), "wanted (H, W) or (H, W, C)"),
        (np.full((40, 40), 7.0, np.float32), "lie outside 0..1"),
        ("absent.png", "absent.png cannot be opened: No such file"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_line(picture, reason):
    with pytest.raises(mimkit.UserError) as error:
        Preprocess(extractor())(picture)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_arrays_of_many_channels_go_to_models_of_as_many():
    preprocess = Preprocess(extractor(channels=5))
    assert preprocess(np.zeros((40, 40, 5), np.uint8)).shape == (5, 28, 28)
    with pytest.raises(mimkit.UserError, match="give an array"):
        preprocess(Image.new("RGB", (40, 40)))
