"""The set `photos`: crops of photographs that the wheels of scikit-image and scikit-learn carry; no network.

The label of a crop is its photograph. Each photograph is cut into tiles of about 100 pixels; a fifth of the
tiles, spread so that each row and column of five has one, is the test region. A crop comes from pixels of one
region only, and is resampled after cutting, so no source pixel is in both splits.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from mimkit.core.errors import missing_extra
from mimkit.core.randomness import rng_keys
from mimkit.data.pictures import Decoded, Split

SIZE = 48  # pixels on a side
SIDES = (48, 64, 88)  # source pixels on a side of a crop, a third of the crops each
TILE = 100  # source pixels; a tile of the test region holds the largest crop
COUNTS = {"train": 504, "test": 102}  # crops of each photograph
_PLAIN = 6.0  # mean over channels of the standard deviation (0..255) below which a crop shows nothing

# Name, package, file, and by how much it is shrunk first (whole blocks of pixels averaged).
PHOTOGRAPHS = (
    ("astronaut", "skimage", "data/astronaut.png", 1),
    ("brick", "skimage", "data/brick.png", 1),
    ("camera", "skimage", "data/camera.png", 1),
    ("cat", "skimage", "data/chelsea.png", 1),
    ("cell", "skimage", "data/cell.png", 1),
    ("coffee", "skimage", "data/coffee.png", 1),
    ("coins", "skimage", "data/coins.png", 1),
    ("dahlia", "sklearn", "datasets/images/flower.jpg", 1),
    ("galaxies", "skimage", "data/hubble_deep_field.jpg", 2),
    ("grass", "skimage", "data/grass.png", 1),
    ("gravel", "skimage", "data/gravel.png", 1),
    ("moon", "skimage", "data/moon.png", 1),
    ("motorcycle", "skimage", "data/motorcycle_left.png", 1),
    ("pagoda", "sklearn", "datasets/images/china.jpg", 1),
    ("retina", "skimage", "data/retina.jpg", 3),
    ("rocket", "skimage", "data/rocket.jpg", 1),
    ("tissue", "skimage", "data/ihc.png", 1),
)


@cache
def photos(split: Split) -> Decoded:
    """About 8,500 crops (504 of each of 17 photographs) for training, 1,734 for testing: 48x48 RGB."""
    region = "test" if split == "test" else "train"
    crops = [_crops(number, region) for number in range(len(PHOTOGRAPHS))]
    labels = torch.arange(len(crops)).repeat_interleave(COUNTS[region])
    names = tuple(name for name, *_ in PHOTOGRAPHS)
    return Decoded("photos", torch.cat(crops), labels, names, has_test=True)


def photograph(number: int) -> Tensor:
    """One photograph, (3, H, W) uint8."""
    _, package, file, shrink = PHOTOGRAPHS[number]
    package_spec = find_spec(package)  # finds the folder without importing the package, which would take a second
    if package_spec is None or not package_spec.submodule_search_locations:
        raise missing_extra("the data set 'photos'", "photos")
    picture = Image.open(Path(package_spec.submodule_search_locations[0]) / file).convert("RGB").reduce(shrink)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def region_for_test(height: int, width: int) -> Tensor:
    """Which pixels belong to the test region, (H, W) bool."""
    # Whole tiles of nearly TILE pixels: a remainder at the border would be a thin tile where no crop fits.
    rows = torch.arange(height) * (height // TILE) // height
    columns = torch.arange(width) * (width // TILE) // width
    return (columns.unsqueeze(0) + 2 * rows.unsqueeze(1)) % 5 == 2


def _crops(number: int, region: str) -> Tensor:
    """The crops of one photograph in one region, (n, 3, 48, 48), at different places chosen by address."""
    picture = photograph(number)
    _, height, width = picture.shape
    wrong = region_for_test(height, width) != (region == "test")
    # A table of sums: four of its corners give the count of wrong pixels in any square, at every place at once.
    summed = pad(wrong.long().cumsum(0).cumsum(1), (1, 0, 1, 0))
    count = COUNTS[region] // len(SIDES)
    by_side = []
    for side in SIDES:
        strange = summed[side:, side:] - summed[:-side, side:] - summed[side:, :-side] + summed[:-side, :-side]
        places = (strange == 0).nonzero()
        # Twice as many as needed, so that plain ones can give way.
        picks = rng_keys("photos", region, number, side, torch.arange(len(places))).argsort()[: 2 * count]
        top, left = places[picks].unbind(1)
        cut = picture.unfold(1, side, 1).unfold(2, side, 1)[:, top, left].transpose(0, 1)
        # A sixteenth of the pixels tells sky from texture well enough.
        plain = cut[:, :, ::4, ::4].float().flatten(2).std(2).mean(1) < _PLAIN
        cut = cut[plain.int().argsort(stable=True)[:count]]  # plain ones when there are no others
        by_side.append(interpolate(cut, (SIZE, SIZE), mode="bicubic", antialias=True) if side != SIZE else cut)
    crops = torch.cat(by_side)
    assert len(crops) == COUNTS[region], PHOTOGRAPHS[number]
    return crops
