"""Laws of the masks with structure: units, squares, blocks, grids, and several views (hypothesis)."""

import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt, label
from torch import Tensor

from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.masks.mask import Mask
from mimkit.masks.masker import Masker
from mimkit.masks.partition import ComplementaryMasker, PartitionMasker
from mimkit.masks.random import RandomMasker, hidden_count
from mimkit.masks.structured import BlockMasker, GridMasker, SimMIMMasker, SquareMasker

Grid = tuple[int, int]
seeds = st.integers(0, 2**31 - 1)
ratios = st.integers(1, 99).map(lambda percent: percent / 100)
sides = st.integers(1, 8)


def draw(masker: Masker, grid: Grid, b: int = 3, seed: int = 0) -> Mask:
    return masker(torch.zeros(b, grid[0] * grid[1], 0), rng_keys("mask", seed, torch.arange(b)), 0.0, grid)


def squares(mask: Mask, grid: Grid) -> Tensor:
    return mask.hidden.unflatten(1, grid)


def average_distance(mask: Mask, grid: Grid, patch: int) -> np.ndarray:
    """SimMIM's AvgDist of every row, in pixels."""
    pixels = squares(mask, grid).repeat_interleave(patch, 1).repeat_interleave(patch, 2).numpy()
    return np.array([np.asarray(distance_transform_edt(one))[one].mean() for one in pixels])


@st.composite
def units(draw) -> tuple[int, Grid]:
    """A side of a unit and a grid of at least two of them."""
    unit = draw(st.integers(1, 3))
    rows, columns = draw(st.tuples(sides, sides).filter(lambda grid: grid != (1, 1)))
    return unit, (rows * unit, columns * unit)


@st.composite
def cases(draw) -> tuple[Masker, Grid]:
    """Any masker of these files, on a grid that it can divide."""
    unit, grid = draw(units())
    n, ratio = grid[0] * grid[1], draw(ratios)
    divisors = [d for d in range(2, n + 1) if n % d == 0]
    makers = [
        lambda: SimMIMMasker(ratio=ratio, unit=unit),
        lambda: SquareMasker(ratio=ratio, unit=unit),
        lambda: BlockMasker(ratio=ratio, least=draw(st.integers(1, 20)), exact=draw(st.booleans())),
        lambda: PartitionMasker(
            parts=draw(st.sampled_from(divisors)), mode=draw(st.sampled_from(["parallel", "independent"]))
        ),
        lambda: ComplementaryMasker(ratio=ratio),
    ]
    if unit > 1:
        makers.append(lambda: GridMasker(step=unit))
    return makers[draw(st.integers(0, len(makers) - 1))](), grid


@given(cases(), seeds)
@settings(deadline=None, max_examples=200)
def test_every_mask_is_valid_and_depends_on_its_key_alone(case, seed):
    masker, grid = case
    mask, n = draw(masker, grid, seed=seed), grid[0] * grid[1]
    assert mask.hidden.shape == (3 * mask.views, n)
    for hidden, visible, padding in zip(mask.hidden, mask.visible, mask.padding, strict=True):
        assert 0 < int(hidden.sum()) < n
        assert len(set(visible.tolist())) == len(visible)
        assert sorted(visible[~padding].tolist()) == (~hidden).nonzero()[:, 0].tolist()
    assert mask.ragged or not mask.padding.any()
    x = torch.rand(*mask.hidden.shape, 2, generator=torch.Generator().manual_seed(seed)) + 1
    full = mask.put(mask.take(x), torch.full((1, 1, 2), -7.0))
    assert torch.equal(full, torch.where(mask.hidden.unsqueeze(-1), -7.0, x))
    # whoever computes it, beside whomever, at whatever moment: the last picture alone
    key = rng_keys("mask", seed, torch.tensor([2]))
    alone = masker(torch.zeros(1, n, 0), key, 0.5, grid)
    assert torch.equal(alone.hidden, mask.hidden[2 * mask.views :])
    assert torch.equal(alone.visible, mask.visible[2 * mask.views :])


MASKERS = [
    SimMIMMasker(),
    SquareMasker(ratio=0.2),
    BlockMasker(),
    BlockMasker(exact=False),
    BlockMasker(ratio=0.3, spread=0.2, exact=False),
    GridMasker(step=7),
    PartitionMasker(),
    PartitionMasker(mode="independent"),
    ComplementaryMasker(),
    ComplementaryMasker(ratio=0.5),
]


@pytest.mark.parametrize("masker", MASKERS, ids=repr)
def test_pictures_and_seeds_differ(masker):
    first, second = draw(masker, (14, 14), b=32), draw(masker, (14, 14), b=32, seed=1)
    different = {tuple(row.tolist()) for row in first.hidden}
    assert len(different) > 20 * first.views  # squares and grids know few places
    assert (first.hidden != second.hidden).any(dim=1).float().mean() > 0.8


COMPILE = """
import sys
import torch
from mimkit.masks.partition import ComplementaryMasker, PartitionMasker
from mimkit.masks.structured import BlockMasker, GridMasker, SimMIMMasker, SquareMasker
from mimkit.core.randomness import rng_keys

torch.set_num_threads(1)
for masker in eval(sys.argv[2]):
    torch._dynamo.reset()
    step = lambda maps, key: masker(maps, key, 0.3, (14, 14))
    compiled = torch.compile(step, fullgraph=True, backend=sys.argv[1])
    given = torch.zeros(5, 196, 0), rng_keys("mask", torch.arange(5))
    with torch.autocast("cpu", torch.bfloat16):
        mask = compiled(*given)
    eager = step(*given)
    assert torch.equal(mask.hidden, eager.hidden) and torch.equal(mask.visible, eager.visible), masker
"""


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_masks_compile_without_a_break_and_are_the_same(backend):
    # in a process of its own: the compiler cannot trace the shape checks that these tests switch on
    subprocess.run([sys.executable, "-c", COMPILE, backend, repr([*MASKERS, GridMasker()])], check=True)


# Units -----------------------------------------------------------------------------------------------------


@given(units(), ratios, seeds)
@settings(deadline=None)
def test_units_are_hidden_whole_and_their_count_is_the_exact_ceiling(case, ratio, seed):
    unit, grid = case
    mask = draw(SimMIMMasker(ratio=ratio, unit=unit), grid, seed=seed)
    cells = squares(mask, grid).unfold(1, unit, unit).unfold(2, unit, unit).flatten(3).float().mean(dim=3)
    assert ((cells == 0) | (cells == 1)).all()
    count = cells[0].numel()
    hide = min(math.ceil(count * Fraction(str(ratio))), count - 1)
    assert cells.sum(dim=(1, 2)).tolist() == [hide] * 3
    assert not mask.ragged and mask.visible.shape[1] == (count - hide) * unit**2


@pytest.mark.parametrize(
    ("grid", "unit", "ratio", "hidden"),
    [
        ((12, 12), 2, 0.6, 22),
        ((14, 14), 2, 0.6, 30),
        ((5, 5), 1, 0.28, 7),
        ((10, 10), 1, 0.1, 10),
        ((2, 2), 1, 0.99, 3),
    ],
)
def test_units_counted_by_hand(grid, unit, ratio, hidden):
    assert int(draw(SimMIMMasker(ratio=ratio, unit=unit), grid).hidden[0].sum()) == hidden * unit**2


AVERAGE_DISTANCES = [  # unit in pixels, ratio, the mean of 200 masks of 192 x 192 pixels
    *[(4, ratio, value) for ratio, value in [(0.1, 1.32), (0.5, 1.81), (0.9, 5.04)]],
    *[(8, ratio, value) for ratio, value in [(0.2, 2.26), (0.6, 3.70), (0.9, 9.87)]],
    *[(16, ratio, value) for ratio, value in [(0.1, 3.78), (0.4, 5.24), (0.6, 7.19), (0.8, 12.5)]],
    *[(32, ratio, value) for ratio, value in [(0.1, 7.62), (0.3, 9.72), (0.6, 15.5), (0.8, 25.9)]],
    *[(64, ratio, value) for ratio, value in [(0.2, 19.7), (0.5, 30.3), (0.8, 68.2)]],
]


@pytest.mark.parametrize(("side", "ratio", "expected"), AVERAGE_DISTANCES)
def test_units_have_the_average_distance_of_simmim(side, ratio, expected):
    patch = max(4, side // 2)
    grid = (192 // patch, 192 // patch)
    distances = average_distance(draw(SimMIMMasker(ratio=ratio, unit=side // patch), grid, b=64), grid, patch)
    doubt = 3.5 * distances.std() * (1 / 64 + 1 / 200) ** 0.5  # both means are of a sample
    assert abs(distances.mean() - expected) < max(0.05, doubt)
    assert doubt < 0.3 or side >= 32 or ratio >= 0.8


# Squares ---------------------------------------------------------------------------------------------------


@given(units(), ratios, seeds)
@settings(deadline=None)
def test_squares_are_whole_rectangles_of_one_size_in_the_grids_proportion(case, ratio, seed):
    unit, grid = case
    mask = draw(SquareMasker(ratio=ratio, unit=unit), grid, seed=seed)
    for hidden in squares(mask, grid):
        sizes = []
        for side, taken in zip(grid, (hidden.any(dim=1), hidden.any(dim=0)), strict=True):
            places = taken.nonzero()[:, 0].tolist()
            assert places == list(range(places[0], places[0] + len(places)))  # no holes
            assert places[0] % unit == 0 and len(places) % unit == 0
            nearest = min(max(unit, side - unit), max(unit, round(side / unit * math.sqrt(ratio) + 1e-9) * unit))
            assert len(places) == nearest
            sizes.append(len(places))
        assert int(hidden.sum()) == math.prod(sizes)
        assert grid[0] != grid[1] or sizes[0] == sizes[1]


def test_squares_lie_anywhere_alike():
    mask = draw(SquareMasker(ratio=0.3), (4, 6), b=6000)  # 2 x 3 patches: 3 x 4 places
    places = squares(mask, (4, 6)).flatten(1).int().argmax(dim=1)
    counts = torch.bincount(places, minlength=24).reshape(4, 6)[:3, :4]
    assert int(counts.sum()) == 6000
    assert ((counts - 500) ** 2 / 500).sum() < 38  # chi-square of 11 degrees: 1e-4


@pytest.mark.parametrize(("ratio", "side", "expected"), [(0.2, 86, 14.9), (0.6, 149, 25.7)])
def test_a_square_inside_the_picture_has_the_average_distance_of_simmim(ratio, side, expected):
    mask = draw(SquareMasker(ratio=ratio), (192, 192), b=12)
    hidden = squares(mask, (192, 192))
    assert int(hidden[0].sum()) == side**2
    distances = average_distance(mask, (192, 192), 1)
    edge = hidden[:, 0].any(1) | hidden[:, -1].any(1) | hidden[:, :, 0].any(1) | hidden[:, :, -1].any(1)
    assert not edge.all()
    assert distances[~edge.numpy()] == pytest.approx(expected, abs=0.5)
    assert distances[~edge.numpy()] == pytest.approx(side / 6 + 0.5, abs=0.05)  # a pyramid's mean height


# Blocks ----------------------------------------------------------------------------------------------------

GRIDS = [(14, 14), (8, 8), (2, 3), (3, 2), (1, 12), (12, 1), (1, 2), (4, 20)]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.75, 0.95])
def test_blocks_hide_the_count_exactly_or_at_most(grid, ratio):
    n = grid[0] * grid[1]
    target = max(1, hidden_count(n, ratio))
    exact = draw(BlockMasker(ratio=ratio), grid, b=100)
    assert exact.hidden.sum(dim=1).tolist() == [target] * 100
    assert exact.visible.shape[1] == n - target and not exact.ragged
    fewer = draw(BlockMasker(ratio=ratio, exact=False), grid, b=100)
    count = fewer.hidden.sum(dim=1)
    assert fewer.ragged and fewer.visible.shape[1] == n - 1
    assert count.min() >= 1 and count.max() <= target
    assert (fewer.hidden <= exact.hidden).all()  # filling up takes nothing back
    if ratio < 0.9 or min(grid) >= 8:  # BEiT gives up soon where hardly any rectangle fits
        assert count.float().mean() > 0.8 * target


@pytest.mark.parametrize(
    ("ratio", "target", "mean", "full"),
    # of 300 to 600 runs of a plain loop over pictures, written from BEiT's description
    [(0.38, 75, 74.5, 0.68), (0.5, 98, 97.6, 0.73), (0.75, 147, 146.3, 0.66)],
)
def test_blocks_fall_short_as_often_as_beit(ratio, target, mean, full):
    count = draw(BlockMasker(ratio=ratio, exact=False), (14, 14), b=1500).hidden.sum(dim=1)
    assert int(count.max()) == target
    assert float(count.float().mean()) == pytest.approx(mean, abs=0.25)
    assert float((count == target).float().mean()) == pytest.approx(full, abs=0.08)


def ibot_count(random: np.random.Generator, grid: Grid, ratio: float, spread: float) -> int:
    """How many patches a plain loop hides, written from iBOT's description: the goal is no whole number."""
    hidden, goal = np.zeros(grid, dtype=bool), random.uniform(ratio - spread, ratio + spread) * grid[0] * grid[1]
    while hidden.sum() < goal:
        before = hidden.sum()
        for _ in range(10):
            area = random.uniform(*sorted([(min(grid) // 3) ** 2, goal - before]))
            aspect = math.exp(random.uniform(math.log(0.3), math.log(1 / 0.3)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (height < grid[0] and width < grid[1]):
                continue
            top, left = (random.integers(0, side - size + 1) for side, size in zip(grid, (height, width), strict=True))
            block = hidden[top : top + height, left : left + width]
            if 0 < height * width - block.sum() <= goal - before:
                block[:] = True
                break
        if hidden.sum() == before:
            break
    return int(hidden.sum())


@pytest.mark.parametrize(("grid", "least"), [((14, 14), 16), ((8, 8), 4)])
def test_blocks_have_ibot_s_ratio_for_each_picture(grid, least):
    n, random = grid[0] * grid[1], np.random.default_rng(0)
    masker = BlockMasker(ratio=0.3, spread=0.2, none=0.5, exact=False, least=least)
    mask = draw(masker, grid, b=3000)
    count = mask.hidden.sum(dim=1)
    assert mask.ragged and mask.visible.shape[1] == n
    assert float((count == 0).float().mean()) == pytest.approx(0.5, abs=0.03)
    theirs = np.array([ibot_count(random, grid, 0.3, 0.2) for _ in range(1500)])
    hidden = count[count > 0].numpy()
    assert hidden.mean() == pytest.approx(theirs.mean(), abs=0.01 * n) and hidden.max() <= n // 2
    assert hidden.std() == pytest.approx(theirs.std(), rel=0.06)
    assert float(mask.hidden.float().mean()) == pytest.approx(0.15, abs=0.01)


def test_blocks_with_a_ratio_for_each_picture_can_be_exact():
    masker = BlockMasker(ratio=0.3, spread=0.2, none=0.25)
    count = draw(masker, (14, 14), b=2000).hidden.sum(dim=1)
    assert count[count > 0].min() == 19 and count.max() == 97 and float((count == 0).float().mean()) < 0.3
    assert count[count > 0].float().mean() == pytest.approx(0.3 * 196 - 0.5, abs=2)
    plain = draw(BlockMasker(ratio=0.3, none=0.25), (14, 14), b=200)
    assert plain.hidden.sum(dim=1).unique().tolist() == [0, 59]
    shown = plain.hidden.sum(dim=1) > 0  # the others are those of one ratio
    assert torch.equal(plain.hidden[shown], draw(BlockMasker(ratio=0.3), (14, 14), b=200).hidden[shown])


@pytest.mark.parametrize("grid", [(14, 14), (8, 16)])
@pytest.mark.parametrize("ratio", [0.38, 0.75])
def test_blocks_hang_together(grid, ratio):
    blocks, noise = draw(BlockMasker(ratio=ratio), grid, b=60), draw(RandomMasker(ratio=ratio), grid, b=60)
    assert average_distance(blocks, grid, 16).mean() > 2.5 * average_distance(noise, grid, 16).mean()
    pieces = [label(one)[1] for one in squares(blocks, grid).numpy()]
    assert np.mean(pieces) < 4


def test_blocks_are_filled_up_beside_themselves():
    grid = (14, 14)
    exact, fewer = draw(BlockMasker(), grid, b=300), draw(BlockMasker(exact=False), grid, b=300)
    added = squares(exact, grid) & ~squares(fewer, grid)
    around = torch.nn.functional.pad(squares(fewer, grid), (1, 1, 1, 1))
    beside = around[:, :-2, 1:-1] | around[:, 2:, 1:-1] | around[:, 1:-1, :-2] | around[:, 1:-1, 2:]
    assert added.sum() > 50
    assert (added <= beside).all()


def test_blocks_have_the_least_area_and_the_aspect_asked_for():
    # 16 of 196 at most: a single rectangle of area 16 can be the first, and nothing fits behind it
    mask = draw(BlockMasker(ratio=0.08, least=16, exact=False, aspect=(1, 1)), (14, 14), b=50)
    assert hidden_count(196, 0.08) == 16
    for hidden in squares(mask, (14, 14)):
        assert int(hidden.any(dim=1).sum()) == 4 and int(hidden.any(dim=0).sum()) == 4 and int(hidden.sum()) == 16
    tall = squares(draw(BlockMasker(ratio=0.08, least=16, exact=False, aspect=(4, 4)), (14, 14), b=50), (14, 14))
    assert (tall.any(dim=2).sum(dim=1) == 8).all() and (tall.any(dim=1).sum(dim=1) == 2).all()
    small = draw(BlockMasker(ratio=0.4, least=1), (14, 14), b=100)
    large = draw(BlockMasker(ratio=0.4, least=40), (14, 14), b=100)
    assert average_distance(small, (14, 14), 4).mean() < average_distance(large, (14, 14), 4).mean() - 0.2


def test_blocks_lean_nowhere():
    fraction = squares(draw(BlockMasker(), (12, 12), b=4000), (12, 12)).float().mean(dim=0)
    for turned in (fraction.flip(0), fraction.flip(1), fraction.T):
        assert (fraction - turned).abs().max() < 0.05
    assert fraction[5:7, 5:7].min() > fraction[0, 0] + 0.3  # as in BEiT the middle is hidden more often


# Grids and places ------------------------------------------------------------------------------------------


@given(st.integers(2, 4), sides, sides, seeds)
@settings(deadline=None)
def test_grids_show_the_same_place_of_every_cell(step, rows, columns, seed):
    grid = (rows * step, columns * step)
    mask = draw(GridMasker(step=step), grid, seed=seed)
    assert mask.visible.shape[1] == rows * columns and not mask.ragged
    for hidden in squares(mask, grid):
        places = (~hidden).nonzero()
        assert len({(int(row) % step, int(column) % step) for row, column in places}) == 1
        assert len(places) == rows * columns


@pytest.mark.parametrize(
    ("masker", "fraction"),
    [
        (SimMIMMasker(ratio=0.6, unit=2), [6 / 9]),
        (GridMasker(step=3), [8 / 9]),
        (GridMasker(step=2), [3 / 4]),
        (PartitionMasker(parts=4), [3 / 4] * 4),
        (PartitionMasker(parts=3, mode="independent"), [2 / 3] * 3),
        (ComplementaryMasker(ratio=0.75), [3 / 4, 1 / 4]),
    ],
    ids=repr,
)
def test_every_patch_is_hidden_as_often_as_any_other(masker, fraction):
    b = 6000
    hidden = draw(masker, (6, 6), b=b).hidden.unflatten(0, (b, -1)).float().mean(dim=0)
    for view, expected in zip(hidden, fraction, strict=True):
        assert (view - expected).abs().max() < 4.5 * (expected * (1 - expected) / b) ** 0.5


# Several views ---------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 8), st.integers(2, 5), seeds)
@settings(deadline=None)
def test_parallel_views_partition_the_patches(rows, columns, parts, seed):
    grid, n = (rows, columns * parts), rows * columns * parts
    mask = draw(PartitionMasker(parts=parts), grid, seed=seed)
    assert mask.views == parts and mask.visible.shape == (3 * parts, n // parts)
    for views in mask.visible.unflatten(0, (3, parts)):  # rows b*K .. b*K+K-1
        assert sorted(views.flatten().tolist()) == list(range(n))
    hidden = mask.hidden.unflatten(0, (3, parts)).long()
    assert (hidden.sum(dim=1) == parts - 1).all()
    common = hidden @ hidden.transpose(1, 2)
    expected = torch.full((parts, parts), n * (parts - 2) // parts).fill_diagonal_(n - n // parts)
    assert (common == expected).all()


def test_the_first_of_parallel_views_is_the_random_mask_of_that_ratio():
    parallel, alone = draw(PartitionMasker(parts=4), (14, 14)), draw(RandomMasker(ratio=0.75), (14, 14))
    assert torch.equal(parallel.hidden[::4], alone.hidden)


def test_independent_views_hide_as_many_and_overlap_by_chance():
    b, parts = 500, 4
    mask = draw(PartitionMasker(parts=parts, mode="independent"), (14, 14), b=b)
    assert mask.views == parts and mask.hidden.sum(dim=1).tolist() == [147] * b * parts
    shown = (~mask.hidden).unflatten(0, (b, parts)).float()
    common = (shown @ shown.transpose(1, 2)).mean(dim=0)
    deviation = (49 * 0.25 * 0.75 * 147 / 195 / b) ** 0.5  # hypergeometric
    assert (common - 49 / 4)[~torch.eye(parts, dtype=torch.bool)].abs().max() < 4.5 * deviation


@given(units(), ratios, seeds)
@settings(deadline=None)
def test_complementary_views_share_the_patches(case, ratio, seed):
    _, grid = case
    n = grid[0] * grid[1]
    mask = draw(ComplementaryMasker(ratio=ratio), grid, seed=seed)
    first, second = mask.hidden[::2], mask.hidden[1::2]
    assert mask.views == 2 and torch.equal(first, ~second)
    assert first.sum(dim=1).tolist() == [max(1, hidden_count(n, ratio))] * 3
    assert mask.visible.shape[1] == max(int(first[0].sum()), int(second[0].sum()))
    assert mask.ragged == (2 * int(first[0].sum()) != n)


# Refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *[(lambda kind=kind: kind(ratio=1.0), r"masker\.ratio") for kind in (SimMIMMasker, SquareMasker)],
        *[(lambda kind=kind: kind(ratio=0.0), r"masker\.ratio") for kind in (BlockMasker, ComplementaryMasker)],
        *[
            (lambda kind=kind: kind(unit=0), r"masker\.unit must be at least 1")
            for kind in (SimMIMMasker, SquareMasker)
        ],
        (lambda: BlockMasker(least=0), r"masker\.least must be at least 1"),
        (lambda: BlockMasker(ratio=0.3, spread=0.3), r"masker\.ratio 0.3 \+- masker\.spread 0.3 must stay"),
        (lambda: BlockMasker(none=1.0), r"masker\.none is a share"),
        (lambda: BlockMasker(aspect=(0.0, 1.0)), r"masker\.aspect"),
        (lambda: BlockMasker(aspect=(2.0, 1.0)), r"masker\.aspect"),
        (lambda: BlockMasker(aspect=(1.0, math.inf)), r"masker\.aspect"),
        (lambda: GridMasker(step=1), r"masker\.step must be at least 2"),
        (lambda: PartitionMasker(parts=1), r"masker\.parts must be at least 2"),
        (lambda: PartitionMasker(mode="paralel"), r"masker\.mode.*parallel"),
    ],
)
def test_settings_that_make_no_mask_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("masker", "grid", "message"),
    [
        (SimMIMMasker(unit=3), (14, 14), "masker.unit must divide .* 14 x 14 .* 3: use 1 or 2 or 7, or"),
        (SquareMasker(unit=4), (6, 4), "masker.unit .* use 1 or 2, or"),
        (SimMIMMasker(unit=4), (4, 4), "single unit.*smaller masker.unit"),
        (SimMIMMasker(unit=1), (1, 1), "single unit.*larger images"),
        (SquareMasker(), (1, 1), "single unit"),
        (BlockMasker(), (1, 1), "single unit"),
        (GridMasker(step=4), (14, 14), "masker.step must divide .* use 2 or 7 or 14, or"),
        (GridMasker(), (3, 5), "masker.step must divide .* use another image size"),
        (PartitionMasker(parts=5), (14, 14), "masker.parts must divide the 196 patches .* 5: use 4 or 7"),
        (PartitionMasker(parts=200, mode="independent"), (14, 14), "use 196"),
        (PartitionMasker(parts=2), (1, 7), "use 7"),
        (PartitionMasker(parts=2), (1, 1), "use more patches"),
        (ComplementaryMasker(), (1, 1), "single patch"),
    ],
)
def test_grids_that_do_not_divide_are_refused_with_the_fix(masker, grid, message):
    with pytest.raises(UserError, match=message):
        draw(masker, grid)
