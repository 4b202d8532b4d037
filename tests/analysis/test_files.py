"""What files cost: their sizes, and how fast they are read, as they are and re-encoded."""

import pytest
import torch
from PIL import Image

from builders import structured
from mimkit.analysis.files import measure_files
from mimkit.data.pictures import Decoded
from mimkit.data.sources import open_pictures
from mimkit.data.views import RandomResizedCrop

torch.set_num_threads(1)


def test_sizes_of_files_and_of_smaller_ones(tmp_path):
    for number in range(6):
        Image.fromarray(structured(number, 700)).save(tmp_path / f"{number}.png")
    files = measure_files(open_pictures([str(tmp_path)], "all"), [RandomResizedCrop()], (64, 64))
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert files.count == 6 and files.size == pytest.approx(sum(sizes) / 6)
    assert files.small_size < files.size / 4 and files.small_per_second > 2 * files.per_second


def test_small_files_gain_nothing(tmp_path):
    for number in range(6):
        Image.fromarray(structured(number, 48)).save(tmp_path / f"{number}.jpg", quality=50)
    files = measure_files(open_pictures([str(tmp_path)], "all"), [RandomResizedCrop()] * 2, (32, 32))
    assert files.small_size is None and files.small_per_second is None and files.per_second > 0


def test_several_folders(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
        for number in range(4):
            Image.fromarray(structured(number, 40)).save(folder / f"{number}.png")
    sizes = [path.stat().st_size for folder in folders for path in folder.iterdir()]
    pictures = open_pictures([str(folder) for folder in folders], "all")
    assert measure_files(pictures, [RandomResizedCrop()], (32, 32)).size == pytest.approx(sum(sizes) / 8)


def test_pixels_in_memory_are_no_files():
    files = measure_files(Decoded("x", torch.zeros(9, 3, 32, 32, dtype=torch.uint8)), [RandomResizedCrop()], (32, 32))
    assert files.size is None and files.small_size is None and files.per_second > 100
