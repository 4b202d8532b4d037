"""Symmetries: eight different ones, each as often as the others, and the shape stays."""

import numpy as np
import pytest
import torch

from mimkit.core.randomness import rng_keys
from mimkit.core.symmetry import draw_symmetries, turned


@pytest.mark.parametrize("shape", [(5, 5), (4, 7)])
def test_symmetries_are_those_of_numpy(shape):
    image = torch.rand(1, 2, *shape, generator=torch.Generator().manual_seed(0))
    count = 8 if shape[0] == shape[1] else 4
    results = turned(image.repeat(count, 1, 1, 1), torch.arange(count))
    quarters = range(4) if count == 8 else (0, 2)
    picture = image[0].numpy().transpose(1, 2, 0)
    expected = [np.rot90(side, k) for k in quarters for side in (picture, picture[:, ::-1])]
    for result in results:
        assert sum(np.array_equal(result.permute(1, 2, 0), other) for other in expected) == 1
    assert len({result.numpy().tobytes() for result in results}) == count


@pytest.mark.parametrize("square, count", [(True, 8), (False, 4)])
def test_each_is_drawn_alike_often(square, count):
    drawn = draw_symmetries(rng_keys("test", torch.arange(8000)), square=square)
    counts = drawn.bincount(minlength=8)
    assert (counts[count:] == 0).all() and (counts[:count] - 8000 / count).abs().max() < 4 * (8000 / count) ** 0.5
