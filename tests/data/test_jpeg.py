"""The usual JPEG: with and without the extra the pixels are the same, and those of Pillow."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from encoded import encoded
from mimkit.core.randomness import rng_keys
from mimkit.data import jpeg
from mimkit.data.decode import BadPicture, decode
from mimkit.data.jpeg import decode_usual_jpeg, usual_size
from mimkit.data.photos import photograph
from mimkit.data.reading import Reading
from mimkit.data.resize import crop_resize_one
from mimkit.data.values import Storage
from mimkit.data.views import RandomResizedCrop

torch.set_num_threads(1)


def photo(number: int) -> Image.Image:
    return Image.fromarray(photograph(number).permute(1, 2, 0).numpy())


def without_extra(monkeypatch) -> None:
    monkeypatch.setattr(jpeg, "_simplejpeg", lambda: None)


@pytest.mark.parametrize("settings", [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}])
@pytest.mark.parametrize("side", [37, 64])
def test_the_extra_changes_no_pixel(settings, side, monkeypatch):
    pytest.importorskip("simplejpeg")
    pictures = [photo(5).crop((90, 80, 90 + side, 181)), photo(2).convert("L").crop((100, 50, 177, 50 + side))]
    files = [encoded(picture, "JPEG", quality=90, **settings) for picture in pictures]
    fast = [decode_usual_jpeg(data, channels) for data in files for channels in (1, 3)]
    without_extra(monkeypatch)
    plain = [decode_usual_jpeg(data, channels) for data in files for channels in (1, 3)]
    assert all(torch.equal(a, b) for a, b in zip(fast, plain, strict=True))


def test_the_extra_is_used(monkeypatch):
    library = pytest.importorskip("simplejpeg")
    calls = []
    monkeypatch.setattr(
        library, "decode_jpeg", lambda data, colors: calls.append(colors) or np.zeros((9, 8, 3), np.uint8)
    )
    assert decode(encoded(photo(5), "JPEG"), Storage(3)).shape == (3, 9, 8) and calls == ["RGB"]


def test_what_is_damaged_inside_is_the_same_with_and_without_the_extra(monkeypatch):
    library = pytest.importorskip("simplejpeg")
    whole = encoded(photo(5), "JPEG", quality=90)
    data = whole[: len(whole) // 2] + whole[-2:]  # lines are missing, which libjpeg fills up and warns of
    with pytest.raises(ValueError):
        library.decode_jpeg(data)
    fast = decode_usual_jpeg(data, 3)
    without_extra(monkeypatch)
    assert torch.equal(fast, decode_usual_jpeg(data, 3))
    with pytest.raises(BadPicture):
        decode(b"\xff\xd8\xff\xe0" + bytes(200) + b"\xff\xd9", Storage(3))


def test_which_are_usual(monkeypatch):
    pytest.importorskip("simplejpeg")
    picture = photo(5).crop((0, 0, 60, 40))
    turned = Image.Exif()
    turned[0x0112] = 6
    assert usual_size(encoded(picture, "JPEG")) == usual_size(encoded(picture.convert("L"), "JPEG")) == (40, 60)
    unusual = [
        encoded(picture, "JPEG", exif=turned),
        encoded(picture.convert("CMYK"), "JPEG"),
        encoded(picture, "PNG"),
        encoded(picture, "JPEG")[:60],
        b"",
    ]
    assert [usual_size(data) for data in unusual] == [None] * 5
    assert decode(unusual[0], Storage(3)).shape == (3, 60, 40)
    monkeypatch.setattr(jpeg, "_MOST", 60 * 40 - 1)
    assert usual_size(encoded(picture, "JPEG")) is None
    without_extra(monkeypatch)
    assert usual_size(encoded(picture, "JPEG")) is None


def test_what_is_usual_is_refused_as_ever(monkeypatch):
    pytest.importorskip("simplejpeg")
    small, whole = encoded(photo(5).crop((0, 0, 60, 7)), "JPEG"), encoded(photo(5), "JPEG")
    for data, reading, line in (
        (small, Reading(), "60x7: smaller than 8"),
        (whole[: len(whole) // 2], Reading(), "truncated"),
        (whole, Reading(plane=2), "has 1 plane"),
    ):
        with pytest.raises(BadPicture, match=line):
            decode(data, Storage(3), reading)
    opened = []
    monkeypatch.setattr("mimkit.data.decode._open", lambda data: opened.append(data))
    assert decode(whole, Storage(3)).dtype == torch.uint8 and not opened, "Pillow is not asked"


def test_crops_are_those_of_pillow_to_a_level():
    for number in range(8):
        data = encoded(photo(number), "JPEG", quality=92)
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        size = torch.tensor([picture.height]), torch.tensor([picture.width])
        boxes, _ = RandomResizedCrop().boxes(rng_keys("pillow", torch.tensor([number])), *size, (224, 224))
        top, left, height, width = boxes[0].tolist()
        # Columns first, then rows: of one call Pillow takes either order, by what is cheaper.
        crop = picture.crop((left, top, left + width, top + height)).resize((224, height), Image.Resampling.BICUBIC)
        wanted_pixels = np.asarray(crop.resize((224, 224), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        decoded = decode(data, Storage(3))
        assert np.array_equal(decoded.numpy().transpose(1, 2, 0), np.asarray(picture))
        ours = crop_resize_one(decoded, boxes[0], False, (224, 224)).numpy()
        difference = np.abs(ours.astype(int) - wanted_pixels)
        assert difference.max() <= 2 and (difference > 1).mean() < 1e-5 and difference.mean() < 0.05
