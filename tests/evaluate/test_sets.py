"""Several sets in one table: each is measured by itself."""

import json

import numpy as np
from PIL import Image

from commandline import mimkit, refused


def shades(folder, classes):
    noise = np.random.default_rng(len(classes))
    for number in range(24):
        place = folder / classes[number % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        values = noise.normal(60 + 60 * (number % len(classes)), 10, (16, 16)).clip(0, 255)
        Image.fromarray(values.astype(np.uint8)).save(place / f"{number}.png")
    return folder


def test_each_set_has_its_rows(tmp_path):
    two, three = shades(tmp_path / "two", ["a", "b"]), shades(tmp_path / "three", ["x", "y", "z"])
    said = mimkit(f"evaluate all pixels --sets {two} {three} --json {tmp_path / 'out.json'} --workers 0")
    assert said.status == 0, said.err
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [(r["data"], r["kind"], r["classes"]) for r in results] == [
        (str(two), "knn", 2),
        (str(two), "probe", 2),
        (str(three), "knn", 3),
        (str(three), "probe", 3),
    ]
    assert "two" in said.out and "three" in said.out and said.out.count("largest class") == 2


def test_sets_or_data(tmp_path):
    assert "--data is missing" in refused("evaluate knn pixels")
    assert "give one of the two" in refused(f"evaluate knn pixels --data {tmp_path} --sets {tmp_path}")
