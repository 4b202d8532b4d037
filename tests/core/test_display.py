"""Display: which channels are seen in which colors, how they are stretched, and what a hole looks like."""

import numpy as np
import pytest
import torch

from mimkit.core.display import Display, hatched, split_holes
from mimkit.core.errors import UserError
from mimkit.core.grids import RAMP
from mimkit.data.values import Values
from mimkit.train.images import Images


def normalized(channels: int, side: int = 6):
    """Pixels in 0..1, and what they are after normalization with the mean and std that follow."""
    pixels = torch.rand(3, channels, side, side + 2, generator=torch.Generator().manual_seed(channels))
    mean, std = [0.1 * (c % 7 + 1) for c in range(channels)], [0.3 + 0.05 * c for c in range(channels)]
    images = (pixels - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)
    return pixels, images, Images(shown=None), mean, std


SEEN = {1: (0, 0, 0), 2: (0, 1, 0), 3: (0, 1, 2), 4: (0, 1, 2), 13: (0, 1, 2)}


@pytest.mark.parametrize("channels", SEEN)
def test_channels_by_default(channels):
    pixels, images, settings, mean, std = normalized(channels)
    display = settings.display(Values(), mean, std)
    torch.testing.assert_close(display(images), pixels[:, list(SEEN[channels])])
    far = display(images * 1000)
    assert far.min() == 0 and far.max() == 1
    assert display.fitted(images) is display, "8-bit pictures are shown as they are"


@pytest.mark.parametrize("shown, rgb", [((7, 2, 4), (6, 1, 3)), ((5,), (4, 4, 4)), ((2, 9), (1, 8, 1))])
def test_chosen_channels(shown, rgb):
    pixels, images, _, mean, std = normalized(9)
    display = Images(shown=shown).display(Values(), mean, std)
    torch.testing.assert_close(display(images), pixels[:, list(rgb)])


@pytest.mark.parametrize("shown", [(), (0,), (1, 2, 3, 4), (10, 1, 2)])
def test_channels_that_cannot_be_shown(shown):
    _, _, _, mean, std = normalized(9)
    with pytest.raises(UserError, match=r"images\.shown"):
        images = Images(shown=shown)
        images.check()
        images.display(Values(), mean, std)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_the_stretch_is_that_of_numpy_over_the_pictures(channels):
    _, images, settings, mean, std = normalized(channels, side=40)
    images, deep = images * 0.01, Values(dtype=torch.uint16, high=(65535.0,))
    display = settings.display(deep, mean, std).fitted(images)
    drawn = display(images)
    for channel, band in enumerate(display.channels):
        values = images[:, band].numpy().astype(np.float64) * std[band] + mean[band]
        low, high = np.percentile(values, (2, 98))
        reference = np.clip((values - low) / (high - low), 0, 1)
        assert np.abs(drawn[:, channel].numpy() - reference).max() < 2e-3
    assert not torch.equal(drawn, Images(stretch=False).display(deep, mean, std).fitted(images)(images))
    assert torch.equal(drawn, Images(stretch=True).display(Values(), mean, std).fitted(images)(images))


def test_a_reconstruction_is_stretched_like_its_original():
    _, images, _, mean, std = normalized(3, side=30)
    display = Images(stretch=True).display(Values(), mean, std).fitted(images)
    assert display(images / 2).std() < 0.7 * display(images).std()


def test_pictures_of_one_value_are_not_stretched():
    display = Display(mean=[0.5], std=[1.0], stretch=True).fitted(torch.zeros(2, 1, 8, 8))
    assert (display(torch.zeros(2, 1, 8, 8)) == 0.5).all()


def test_what_lies_under_holes_does_not_stretch():
    _, images, _, mean, std = normalized(3, side=30)
    valid = torch.ones_like(images, dtype=torch.bool)
    valid[:, :, :10] = False
    display = Display(mean=mean, std=std, stretch=True)
    bounds = {display.fitted(images.masked_fill(~valid, under), valid).bounds for under in (0.0, 1e6, -3.0)}
    assert len(bounds) == 1 and bounds != {display.fitted(images).bounds}
    nothing = display.fitted(images, torch.zeros_like(valid))
    assert torch.equal(nothing(images), Display(mean=mean, std=std)(images)), "no data at all: no stretch"


def test_one_channel_in_colors():
    images = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    drawn = Display(mean=[0.0], std=[1.0], color_map=True)(images)
    torch.testing.assert_close(drawn[0, :, 0].T, torch.tensor([RAMP[0], RAMP[-1]]))


@pytest.mark.parametrize("side", [28, 96, 224])
def test_holes_are_hatched(side):
    image, holes = torch.full((2, 3, side, side), 0.2), torch.zeros(2, 1, side, side, dtype=torch.bool)
    holes[1, :, : side // 2] = True
    drawn = hatched(image, holes)
    assert torch.equal(drawn[0], image[0]) and torch.equal(drawn[1, :, side // 2 :], image[1, :, side // 2 :])
    stripes = drawn[1, 0, : side // 2]
    assert torch.equal(stripes.unique(), torch.tensor([0.45, 0.75]))
    assert torch.equal(stripes[1:, :-1], stripes[:-1, 1:]), "diagonal"
    assert torch.equal(hatched(image, None), image)


def test_a_pixel_is_a_hole_where_a_shown_channel_is_none():
    images = torch.zeros(1, 5, 2, 2)
    images[0, 1, 0, 0], images[0, 4, 1, 1] = torch.nan, torch.nan
    filled, valid = split_holes(images)
    assert filled.isfinite().all() and int(valid.sum()) == 18
    display = Display(mean=[0.5] * 5, std=[1.0] * 5)
    assert display.holes(valid).flatten().tolist() == [True, False, False, False]
    assert display.only(5).holes(valid).flatten().tolist() == [False, False, False, True]
    assert split_holes(filled)[1] is None and display.holes(None) is None
