"""Maps: which pixel stands for which, and what is no map."""

import numpy as np
import pytest
from PIL import Image

from mimkit.data.annotations.maps import packed, read_values, resized, same_shape
from mimkit.data.header import BadPicture


def test_a_pixel_of_another_size_is_the_one_below_its_middle():
    values = np.arange(12).reshape(2, 6)
    assert resized(values, (1, 2)).tolist() == [[7, 10]]
    assert resized(values, (1, 3)).tolist() == [[7, 9, 11]]
    assert resized(values, (4, 6)).tolist() == [row for row in values.tolist() for _ in range(2)]
    assert resized(values, (2, 6)) is values


def test_shapes_are_the_same_but_for_a_pixel_of_rounding():
    pictures, maps = np.array([[480, 640]] * 5), np.array([[240, 320], [60, 79], [961, 1280], [640, 480], [240, 330]])
    assert same_shape(pictures, maps).tolist() == [True, True, True, False, False]


def test_colors_are_packed_as_they_are_written():
    assert packed(np.array([[[1, 2, 3]]], np.uint8)).tolist() == [[0x010203]]


@pytest.mark.parametrize(
    ("name", "array", "line"),
    [
        ("a.npy", np.zeros((9, 9, 3)), "holds an array"),
        ("a.npy", np.zeros((9, 9), complex), "holds an array"),
        ("a.npy", np.array([[None] * 9] * 9), "cannot be decoded"),
        ("a.png", np.zeros((5, 9), np.uint8), "smaller than 8 pixels"),
    ],
)
def test_what_is_no_map_has_a_reason(tmp_path, name, array, line):
    file = tmp_path / name
    if name.endswith("npy"):
        np.save(file, array, allow_pickle=True)
    else:
        Image.fromarray(array).save(file)
    with pytest.raises(BadPicture, match=line):
        read_values(str(file).encode())
    with pytest.raises(BadPicture, match="cannot be opened"):
        read_values(str(tmp_path / "gone.png").encode())


def test_layers_of_one_are_maps(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((1, 9, 9), np.float32))
    assert read_values(str(tmp_path / "a.npy").encode()).shape == (9, 9)
