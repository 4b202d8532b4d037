"""Statistics of masks, against masks written down by hand and against reference values."""

import pytest
import torch

from mimkit.core.randomness import rng_keys
from mimkit.masks import Mask, RandomMasker
from mimkit.masks.statistics import (
    average_distance,
    mask_statistics,
    object_hidden,
    overlap,
    random_like,
    score_entropy,
)


def random_masks(size: int, patch: int, ratio: float, count: int = 200) -> tuple[Mask, tuple[int, int]]:
    grid = (size // patch, size // patch)
    signal = torch.zeros(count, grid[0] * grid[1], 0)
    return RandomMasker(ratio=ratio)(signal, rng_keys("draw", torch.arange(count)), 0.0, grid), grid


def hiding(*rows: str, views: int = 1) -> Mask:
    """A mask written down: `x` is hidden."""
    hidden = torch.tensor([[place == "x" for place in row] for row in rows])
    seen = (~hidden).sum(dim=1).max()
    return Mask(hidden, hidden.int().argsort(dim=1, stable=True)[:, :seen], views, ragged=True)


# Reference values of AvgDist for random masks at 192 x 192 by another implementation over 200 masks, which rounds the
# hidden patches up as ours does; +- 0.3, more where few large patches are visible.
@pytest.mark.parametrize(
    ("patch", "ratio", "expected", "tolerance"),
    [
        (4, 0.6, 2.08, 0.3),
        (8, 0.6, 3.70, 0.3),
        (16, 0.1, 3.78, 0.3),
        (16, 0.6, 7.19, 0.3),
        (16, 0.7, 9.07, 0.3),
        (16, 0.9, 20.2, 0.6),
        (32, 0.2, 8.80, 0.4),
        (32, 0.6, 15.5, 0.6),
        (32, 0.7, 20.1, 1.0),
    ],
)
def test_average_distance_agrees_with_reference_values(patch, ratio, expected, tolerance):
    drawn, grid = random_masks(192, patch, ratio)
    found = mask_statistics([drawn], [rng_keys("draw", torch.arange(200))], grid, (patch, patch))
    assert found["average_distance"] == pytest.approx(expected, abs=tolerance)
    assert found["masks"] == 200 and found["patches"] == grid[0] * grid[1]


def test_average_distance_of_three_quarters_lies_between_its_neighbors():
    for patch, low, high in ((16, 9.07, 12.5), (32, 20.1, 25.9)):
        drawn, grid = random_masks(192, patch, 0.75)
        assert low < average_distance(drawn, grid, (patch, patch)).mean() < high


def test_statistics_of_masks_known_by_hand():
    found = mask_statistics([hiding("x...", "xx..")], [rng_keys("draw", torch.arange(2))], (2, 2), (2, 2))
    assert (found["ratio_lowest"], found["ratio"], found["ratio_highest"]) == (0.25, 0.375, 0.5)
    # A hidden corner of 2x2 pixels: the outermost is 2 away, three are 1 away. A hidden upper half: 2 and 1 away.
    assert found["average_distance"] == pytest.approx(((2 + 1 + 1 + 1) / 4 + 1.5) / 2)
    assert found["overlap_expected"] == 0.375
    assert found["overlap_seeds"] is None and found["score_entropy"] is None and "object" not in found


@pytest.mark.parametrize("width", [1, 3, 8])
def test_average_distance_of_a_half_plane(width):
    mask = hiding("x" * width + "." * (9 - width))
    assert average_distance(mask, (1, 9), (1, 1)).item() == pytest.approx((width + 1) / 2)


def test_thrown_patches_are_neither_visible_nor_counted_as_hidden():
    scores = torch.tensor([[4.0, 3.0, 1.0, 2.0, 0.0]])
    mask = Mask.from_scores(scores, 2, throw=1)  # hidden hidden visible thrown visible
    assert average_distance(mask, (1, 5), (1, 1)).item() == pytest.approx((2 + 1) / 2)
    further = Mask.from_scores(torch.tensor([[4.0, 3.0, 2.0, 0.0, 1.0]]), 2, throw=1)
    assert average_distance(further, (1, 5), (1, 1)).item() == pytest.approx((3 + 2) / 2)
    found = mask_statistics([mask], [rng_keys("draw", torch.arange(1))], (1, 5), (1, 1))
    assert (found["ratio"], found["thrown"]) == pytest.approx((0.4, 0.2))


def test_masks_that_hide_nothing_have_no_distance():
    found = mask_statistics([hiding("....", "....")], [rng_keys("draw", torch.arange(2))], (2, 2), (8, 8))
    assert found["average_distance"] is None and found["overlap_random"] is None and found["ratio"] == 0


def test_overlap_by_hand():
    one, other = hiding("xx..", "x...", "xxx.").hidden, hiding("x.x.", ".xxx", "xxxx").hidden
    assert overlap(one, other).tolist() == [0.5, 0, 1]
    assert overlap(other, one).tolist() == [0.5, 0, 0.75]


def test_a_random_mask_of_the_same_count():
    address = rng_keys("draw", torch.arange(300))
    drawn, _ = random_masks(40, 4, 0.7, 300)
    assert torch.equal(random_like(drawn, address), drawn.hidden)  # the same keys, the same mask
    other = random_like(drawn, rng_keys("other", torch.arange(300)))
    assert (other.sum(1) == drawn.hidden.sum(1)).all()
    assert overlap(drawn.hidden, other).mean().item() == pytest.approx(0.7, abs=0.01)
    uneven = hiding("x...", "xxx.", "xx..", "....", views=2)
    like = random_like(uneven, rng_keys("draw", torch.arange(2)))
    assert like.sum(1).tolist() == [1, 3, 2, 0]
    assert (like[0] <= like[1]).all()  # both views of a picture take its highest noise


def test_overlap_of_seeds_and_with_random_masks_in_the_statistics():
    address = [rng_keys("draw", seed, torch.arange(300)) for seed in range(3)]
    nothing = torch.zeros(300, 100, 0)
    drawn = [RandomMasker(ratio=0.7)(nothing, one, 0.0, (10, 10)) for one in address]
    found = mask_statistics(drawn, address, (10, 10), (1, 1))
    assert found["overlap_random"] == 1 and found["overlap_expected"] == pytest.approx(0.7)
    assert found["overlap_seeds"] == pytest.approx(0.7, abs=0.01)
    same = mask_statistics([drawn[0]] * 3, address, (10, 10), (1, 1))
    assert same["overlap_seeds"] == 1 and same["overlap_random"] < 0.9


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1.0, 1.0, 1.0, 1.0], 1.0),
        ([0.0, 5.0, 0.0, 0.0], 0.0),
        ([2.0, 2.0, 0.0, 0.0], 0.5),  # ln 2 / ln 4
        ([0.0, 0.0, 0.0, 0.0], 1.0),
        ([-1.0, 1.0, 1.0, -1.0], 0.5),  # from the lowest on
        ([-3.0, -3.0, -3.0, -3.0], 1.0),
        ([4.0, 2.0, 1.0, 1.0], 1.75 / 2),  # bits of 1/2 1/4 1/8 1/8 over 2 bits
    ],
)
def test_entropy_of_scores(scores, expected):
    assert score_entropy(torch.tensor([scores])).item() == pytest.approx(expected, abs=1e-6)


def test_hidden_share_of_an_object():
    objects = torch.tensor([[1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    mask = hiding("x.x.", ".x..", "xxxx", "xxxx", views=2)
    shares = object_hidden(mask, objects)
    assert shares[:2].tolist() == pytest.approx([1 / 1.5, 0.5 / 1.5]) and shares[2:].isnan().all()
    found = mask_statistics([mask], [rng_keys("draw", torch.arange(2))], (1, 4), (1, 1), objects=objects)
    assert found["object"] == pytest.approx(1.5 / 8) and found["object_hidden"] == pytest.approx(0.5)
