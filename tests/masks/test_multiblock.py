"""Multi-block masks: what the authors' collator does, at every grid, and without ever looking for long."""

import math

import numpy as np
import pytest
import torch

from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.masks import Mask, MultiBlockMasker

GRIDS = [(4, 4), (4, 7), (5, 5), (6, 6), (7, 4), (8, 8), (9, 14), (14, 14), (16, 16), (24, 32)]


def drawn(masker: MultiBlockMasker, grid: tuple[int, int], rows: int = 64, progress=0.3, seed: int = 0) -> Mask:
    return masker(torch.zeros(rows, grid[0] * grid[1], 0), rng_keys("mask", seed, torch.arange(rows)), progress, grid)


def as_blocks(mask: Mask, grid: tuple[int, int]) -> torch.Tensor:
    """(B, M, rows, columns): which patches each block has, without surplus slots."""
    rows, blocks, _ = mask.asked.shape
    real = mask.at_blocks(mask.hidden)
    counts = torch.zeros(rows, blocks, mask.hidden.shape[1], dtype=torch.int64)
    counts.scatter_add_(2, mask.asked, real.long())
    assert counts.max() == 1, "no place twice in a block"
    return (counts > 0).unflatten(2, grid)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("edge", [True, False])
@pytest.mark.parametrize("one_draw", [True, False])
def test_every_grid_has_equal_counts_and_rectangles_of_one_size(grid, edge, one_draw):
    masker, n = MultiBlockMasker(edge=edge, one_draw=one_draw, ratio=0.8), grid[0] * grid[1]
    sizes = set()
    for moment in range(12):
        mask = drawn(masker, grid, progress=moment / 12)
        assert mask.visible.shape[1] == int(n * (1 - 0.8)) and not mask.ragged
        assert (mask.hidden.sum(dim=1) == n - mask.visible.shape[1]).all()
        blocks = as_blocks(mask, grid)
        heights, widths = blocks.any(dim=3).sum(dim=2), blocks.any(dim=2).sum(dim=2)
        assert len(heights.unique()) == len(widths.unique()) == 1
        assert torch.equal(blocks.sum(dim=(2, 3)), heights * widths), "a rectangle"
        shown = ~mask.hidden.unflatten(1, grid)
        assert not (shown & blocks.any(dim=1)).any(), "the context sees no target"
        height, width = int(heights[0, 0]), int(widths[0, 0])
        assert height < grid[0] and width < grid[1]
        assert height * width <= mask.asked.shape[2] == masker.largest(grid)
        sizes.add((height, width))
    assert len(sizes) > 1 or n <= 25


@pytest.mark.parametrize("grid", [(6, 6), (8, 8), (14, 14), (16, 16)])
@pytest.mark.parametrize("one_draw", [True, False])
def test_sizes_are_the_authors(grid, one_draw):
    """Those of a loop in float64, as their code reads; the room is that of the largest."""
    masker, rng, expected = MultiBlockMasker(one_draw=one_draw), np.random.default_rng(0), set()
    for _ in range(4000):
        area, aspect, wide = rng.random(3)
        aspect = 0.75 + (area if one_draw else aspect) * 0.75
        patches = int(grid[0] * grid[1] * (0.15 + area * 0.05))
        sides = round(math.sqrt(patches * aspect)), round(math.sqrt(patches / aspect))
        context = round(math.sqrt(int(grid[0] * grid[1] * (0.85 + wide * 0.15))))
        expected.add(
            (*(min(side, limit - 1) for side, limit in zip(sides, grid, strict=True)), min(context, grid[0] - 1))
        )
    sizes = set()
    for moment in range(3000):
        target, context = masker.sizes(moment / 3000, grid, torch.device("cpu"))
        assert context[0] == context[1]
        sizes.add((int(target[0]), int(target[1]), int(context[0])))
    rare = sizes ^ expected
    assert len(rare) <= 0.1 * len(expected), rare
    exact = max(height * width for height, width, _ in expected)
    assert masker.largest(grid) == exact if not one_draw else masker.largest(grid) >= exact


def test_sizes_belong_to_the_step_and_places_to_the_picture():
    masker, grid = MultiBlockMasker(), (14, 14)
    whole = drawn(masker, grid)
    part = masker(torch.zeros(5, 196, 0), rng_keys("mask", 0, torch.arange(20, 25)), 0.3, grid)
    assert torch.equal(whole.asked[20:25], part.asked) and torch.equal(whole.hidden[20:25], part.hidden)
    tensor = drawn(masker, grid, progress=torch.tensor(0.3))
    assert torch.equal(whole.asked, tensor.asked)
    assert len({tuple(masker.sizes(step / 50, grid, torch.device("cpu"))[0].tolist()) for step in range(50)}) > 4
    assert len(whole.asked[:, 0, 0].unique()) > 20 and not torch.equal(whole.asked[:, 0], whole.asked[:, 1])


@pytest.mark.parametrize("grid", [(8, 8), (16, 16)])
def test_the_last_row_is_reached_with_edge_alone(grid):
    for edge in (True, False):
        asked, shown = torch.zeros(grid), torch.zeros(grid)
        for step in range(40):
            mask = drawn(MultiBlockMasker(edge=edge, ratio=0.79), grid, 32, step / 40)
            asked += as_blocks(mask, grid).sum(dim=(0, 1))
            shown += (~mask.hidden).sum(dim=0).unflatten(0, grid)
        for counts in (asked, shown):
            assert (counts[-1].sum() > 0) == (counts[:, -1].sum() > 0) == edge
            assert counts[:-1, :-1].min() > 0
        # The authors' rows of context thin out towards the bottom, since they cut from there; ours lie even.
        assert shown[1].sum() < 1.5 * shown[-3].sum() and shown[-3].sum() < 1.5 * shown[1].sum()


def test_what_is_visible_lies_in_the_context():
    """Where the first arrangement leaves enough, which is nearly always."""
    masker, grid = MultiBlockMasker(context=(0.3, 0.3), scale=(0.05, 0.05), ratio=0.9), (16, 16)
    shown = ~drawn(masker, grid, 64).hidden.unflatten(1, grid)
    rows = shown.any(dim=2).float()
    extent = 16 - rows.argmax(dim=1) - rows.flip(1).argmax(dim=1)
    assert extent.max() <= 9 and shown.sum(dim=(1, 2)).unique().tolist() == [25]


def test_too_much_to_show_gathers_all_blocks_in_one_place():
    mask = drawn(MultiBlockMasker(ratio=0.3), (8, 8))
    assert (mask.asked == mask.asked[:, :1]).all() and mask.visible.shape[1] == 44


@pytest.mark.parametrize(
    ("settings", "grid", "reason"),
    [
        ({"ratio": 0.05}, (8, 8), "a target block of 12 leaves 52: use a higher ratio"),
        ({}, (1, 1), "use a higher ratio, or larger images"),
        ({"scale": (0.3, 0.2)}, None, "masker.scale goes from a share above 0"),
        ({"context": (0.5, 1.1)}, None, "masker.context goes from a share above 0"),
        ({"aspect": (0.0, 1.0)}, None, "masker.aspect goes from"),
        ({"blocks": 0}, None, "masker.blocks"),
        ({"ratio": 1.0}, None, "masker.ratio"),
    ],
)
def test_what_cannot_be_is_refused(settings, grid, reason):
    with pytest.raises(UserError, match=reason):
        masker = MultiBlockMasker(**settings)
        drawn(masker, grid)


def test_patches_without_data_are_asked_of_by_nobody():
    mask = drawn(MultiBlockMasker(), (8, 8))
    measured = torch.ones(64, 64)
    measured[:, :24] = 0.0
    holes = mask.without_holes(measured)
    weights = holes.at_blocks(holes.counted)
    assert not weights[holes.blocks < 24].any() and weights.any()
    real = mask.at_blocks(mask.hidden)
    assert not weights[~real].any(), "a surplus slot counts nothing"
    assert torch.equal(weights[real], (mask.asked >= 24)[real].float())


def test_without_blocks_all_hidden_patches_are_one():
    hidden = torch.tensor([[True, False, True, False], [False, True, True, False]])
    mask = Mask.from_scores(hidden.float(), 2)
    assert mask.blocks.tolist() == [[[0, 2]], [[1, 2]]]
    ragged = Mask.from_scores(hidden.float(), torch.tensor([2, 1]), least=1)
    assert ragged.blocks.shape == (2, 1, 4)
    assert ragged.at_blocks(ragged.hidden).sum(dim=(1, 2)).tolist() == [2, 1]
    thrown = Mask.from_scores(torch.tensor([[4.0, 3.0, 2.0, 1.0]]), 1, throw=2)
    assert thrown.blocks.tolist() == [[[0]]]
