"""Laws of masks, maskers and addressed randomness, for arbitrary sizes (hypothesis)."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mimkit.core.errors import UserError
from mimkit.core.randomness import integer, rng_keys, uniform
from mimkit.masks import Mask, RandomMasker
from mimkit.masks.random import hidden_count

seeds = st.integers(0, 2**31 - 1)
rows = st.integers(1, 5)


def scores(seed: int, shape: tuple[int, int], levels: int | None = None) -> Tensor:
    """Noise, or with `levels` noise full of ties."""
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return (noise * levels).floor() if levels else noise


@st.composite
def fixed(draw) -> tuple[Tensor, int]:
    n = draw(st.integers(1, 40))
    noise = scores(draw(seeds), (draw(rows), n), draw(st.sampled_from([None, 2, 5])))
    return noise, draw(st.integers(0, n - 1))


@st.composite
def ragged(draw) -> tuple[Tensor, Tensor, int]:
    n, b = draw(st.integers(2, 40)), draw(rows)
    least = draw(st.integers(0, n - 1))
    hide = draw(st.lists(st.integers(least, n - 1), min_size=b, max_size=b))
    return scores(draw(seeds), (b, n), draw(st.sampled_from([None, 3]))), torch.tensor(hide), least


@given(fixed())
@settings(deadline=None)
def test_hidden_and_visible_partition_the_patches(case):
    noise, hide = case
    mask = Mask.from_scores(noise, hide)
    n = noise.shape[1]
    assert mask.hidden.sum(dim=1).tolist() == [hide] * noise.shape[0]
    for hidden, visible in zip(mask.hidden, mask.visible.tolist(), strict=True):
        assert sorted([*visible, *hidden.nonzero()[:, 0].tolist()]) == list(range(n))
    assert not mask.padding.any() and not mask.ragged


@given(fixed())
@settings(deadline=None)
def test_the_highest_scores_are_hidden(case):
    noise, hide = case
    mask = Mask.from_scores(noise, hide)
    for row, hidden in zip(noise, mask.hidden, strict=True):
        if hide:
            assert row[hidden].min() >= row[~hidden].max()
        # ties by position: of equal scores the earlier ones stay
        order = sorted(range(len(row)), key=lambda i: (float(row[i]), i))
        assert set(hidden.nonzero()[:, 0].tolist()) == set(order[len(row) - hide :])


@given(ragged())
@settings(deadline=None)
def test_ragged_masks_hide_as_many_as_each_row_wants(case):
    noise, hide, least = case
    mask = Mask.from_scores(noise, hide, least=least)
    n = noise.shape[1]
    assert mask.ragged and mask.visible.shape[1] == n - least  # known without reading the device
    assert mask.hidden.sum(dim=1).tolist() == hide.tolist()
    assert mask.padding.sum(dim=1).tolist() == (hide - least).tolist()
    for row, (hidden, visible, padding) in enumerate(zip(mask.hidden, mask.visible, mask.padding, strict=True)):
        assert len(set(visible.tolist())) == n - least  # duplicates would make `put` depend on chance
        assert set(visible[~padding].tolist()) == set((~hidden).nonzero()[:, 0].tolist())
        alone = Mask.from_scores(noise[row : row + 1], int(hide[row]))
        assert torch.equal(alone.hidden[0], hidden)


@given(st.one_of(fixed(), ragged()), st.integers(1, 4))
@settings(deadline=None)
def test_put_undoes_take(case, width):
    noise, hide, *least = case
    mask = Mask.from_scores(noise, hide, least=least[0] if least else None)
    x = torch.rand(*noise.shape, width, generator=torch.Generator().manual_seed(0)) + 1
    full = mask.put(mask.take(x), torch.full((1, 1, width), -7.0))
    assert torch.equal(full[~mask.hidden], x[~mask.hidden])
    assert (full[mask.hidden] == -7).all()
    assert torch.equal(mask.put(mask.take(x), x), x)  # with something of its own everywhere
    assert torch.equal(mask.take(full)[~mask.padding], mask.take(x)[~mask.padding])
    assert torch.equal(mask.take(x)[..., 0], mask.take(x[..., 0]))  # any number of axes behind


def test_surplus_slots_do_not_write():
    mask = Mask.from_scores(torch.tensor([[0.1, 0.2, 0.3, 0.4]]), torch.tensor([3]), least=1)
    latents = torch.tensor([[[1.0], [2.0], [3.0]]])
    assert mask.put(latents, torch.zeros(1, 1, 1))[0, :, 0].tolist() == [1, 0, 0, 0]


def test_gradients_flow_through_put_and_take_to_visible_patches_alone():
    mask = Mask.from_scores(scores(0, (2, 6)), torch.tensor([2, 4]), least=2)
    x, token = torch.rand(2, 6, 3, requires_grad=True), torch.rand(1, 1, 3, requires_grad=True)
    mask.put(mask.take(x), token).sum().backward()
    assert torch.equal(x.grad != 0, ~mask.hidden.unsqueeze(-1).expand(-1, -1, 3))
    assert token.grad[0, 0].tolist() == [6, 6, 6]


@given(rows, st.integers(1, 4))
def test_views_of_a_picture_lie_together(b, views):
    mask = Mask.from_scores(scores(0, (b * views, 4)), 2, views=views)
    repeated = mask.repeat(torch.arange(b))
    assert repeated.tolist() == [row // views for row in range(b * views)]


@pytest.mark.parametrize("hide", [-1, 4, 5])
def test_something_must_stay_visible(hide):
    with pytest.raises(ValueError, match="at least one must stay visible"):
        Mask.from_scores(torch.rand(1, 4), hide)


@pytest.mark.parametrize("least", [None, -1, 4])
def test_a_number_for_each_row_needs_the_smallest(least):
    with pytest.raises(ValueError, match="least"):
        Mask.from_scores(torch.rand(1, 4), torch.tensor([2]), least=least)


# Random masks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patches", "ratio", "visible"),
    [
        (196, 0.75, 49),
        (196, 0.7, 58),
        (196, 0.9, 19),
        (196, 0.6, 78),
        (100, 0.9, 9),
        (100, 0.8, 19),
        (4, 0.9, 1),
    ],
)
def test_counts_are_those_of_the_released_code(patches, ratio, visible):
    assert patches - hidden_count(patches, ratio) == visible


@given(st.integers(1, 500), st.floats(0.001, 0.999))
def test_counts_are_floored_products_and_leave_one(patches, ratio):
    visible = patches - hidden_count(patches, ratio)
    assert visible == max(1, int(patches * (1 - ratio)))
    assert 1 <= visible <= patches


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 75])
def test_ratios_out_of_range_are_refused(ratio):
    with pytest.raises(UserError, match=r"masker\.ratio"):
        RandomMasker(ratio=ratio)


def draw(b: int, n: int, *, ratio: float = 0.75, seed: int = 0) -> Mask:
    return RandomMasker(ratio=ratio)(torch.zeros(b, n, 0), rng_keys("mask", seed, torch.arange(b)), 0.0, (1, n))


def test_random_masks_are_uniform_and_differ():
    b, n = 16000, 49
    mask = draw(b, n, ratio=0.6)
    fraction = mask.hidden.float().mean(dim=0)
    expected = hidden_count(n, 0.6) / n
    deviation = (expected * (1 - expected) / b) ** 0.5
    assert (fraction - expected).abs().max() < 4.5 * deviation
    # pairs of patches: hidden together as often as drawing without replacement has it
    together = mask.hidden.float().T @ mask.hidden.float() / b
    pair = expected * (hidden_count(n, 0.6) - 1) / (n - 1)
    off = together[~torch.eye(n, dtype=torch.bool)]
    assert (off - pair).abs().max() < 6 * (pair * (1 - pair) / b) ** 0.5
    assert len({tuple(row.tolist()) for row in mask.hidden}) == b


def test_a_mask_depends_on_its_address_alone():
    whole = draw(6, 16)
    again = draw(6, 16)
    assert torch.equal(whole.hidden, again.hidden)
    masker = RandomMasker()
    part = masker(torch.zeros(2, 16, 0), rng_keys("mask", 0, torch.tensor([4, 1])), 0.5, (4, 4))
    assert torch.equal(part.hidden, whole.hidden[[4, 1]])  # whoever computes it, beside whomever
    assert not torch.equal(draw(6, 16, seed=1).hidden, whole.hidden)


# Addressed randomness --------------------------------------------------------------------------------------


def test_uniform_numbers_have_the_moments_of_uniform_numbers():
    x = uniform(rng_keys("test", torch.arange(1000)), 200).double()
    n = x.numel()
    assert x.min() >= 0 and x.max() < 1
    for power in (1, 2, 3, 4):
        mean = float((x**power).mean())
        deviation = ((1 / (2 * power + 1) - 1 / (power + 1) ** 2) / n) ** 0.5
        assert abs(mean - 1 / (power + 1)) < 4.5 * deviation
    counts = torch.histc(x, bins=64, min=0, max=1)
    assert float(((counts - n / 64) ** 2 / (n / 64)).sum()) < 120  # chi-square of 63 degrees: 1e-5
    assert len(x.unique()) > 0.98 * n


@pytest.mark.parametrize("axis", [0, 1])
def test_neighbors_are_independent(axis):
    x = uniform(rng_keys("test", torch.arange(500)), 500).double() - 0.5
    first, second = x.narrow(axis, 0, 499), x.narrow(axis, 1, 499)
    correlation = float((first * second).mean() * 12)
    assert abs(correlation) < 4.5 / (499 * 500) ** 0.5


def test_every_part_of_an_address_counts():
    addresses = [
        ("a", 0, 1),
        ("b", 0, 1),
        ("a", 1, 0),
        ("a", 0, 2),
        ("a", 0),
        ("a", 0, 1, 0),
        (0, "a", 1),
        ("a", -1),
    ]
    drawn = {tuple(uniform(rng_keys(*address), 4).tolist()) for address in addresses}
    assert len(drawn) == len(addresses)
    key = rng_keys("a")
    streams = torch.stack([uniform(key, 1000, stream=stream) for stream in range(3)])
    assert (torch.corrcoef(streams) - torch.eye(3)).abs().max() < 0.15
    assert not torch.equal(streams[0], streams[1])
    assert len({integer("a", i) for i in range(1000)}) == 1000 and integer("a", 3) >= 0


def test_longer_draws_go_on_from_shorter_ones():
    key = rng_keys("a", torch.arange(3))
    assert torch.equal(uniform(key, 20)[:, :7], uniform(key, 7))


@given(seeds, st.integers(0, 2**40), st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=5))
@settings(deadline=None)
def test_keys_broadcast(seed, step, places):
    together = rng_keys("mask", seed, step, torch.tensor(places))
    assert together.tolist() == [int(rng_keys("mask", seed, step, place)) for place in places]
    grid = rng_keys("mask", torch.tensor([[seed], [step]]), torch.tensor(places))
    assert grid.shape == (2, len(places))
    assert int(grid[1, 0]) == int(rng_keys("mask", step, places[0]))


def test_numbers_that_a_run_from_yesterday_drew():
    """Any change of these changes every crop and mask of every run that is to be resumed."""
    expected = [0.6029366850852966, 0.7017681002616882, 0.9226129055023193, 0.11916804313659668]
    assert uniform(rng_keys("mask", 0, 1, 2), 4).tolist() == expected


COMPILED = """
import torch
from mimkit.core.randomness import rng_keys, uniform

compiled = torch.compile(lambda key, n: uniform(rng_keys(key, 3), n), fullgraph=True)
for n in (1, 7, 16, 49, 196):  # also where rows are no multiple of a vector's width
    key = rng_keys("mask", torch.arange(5))
    assert torch.equal(compiled(key, n), uniform(rng_keys(key, 3), n)), n
"""


@pytest.mark.slow
def test_randomness_is_the_same_compiled():
    """In a process of its own: dynamo cannot trace what checks shapes."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_randomness_is_the_same_on_the_device():
    places = torch.arange(64)
    cpu = uniform(rng_keys("mask", 3, places), 196)
    assert torch.equal(uniform(rng_keys("mask", 3, places.cuda()), 196).cpu(), cpu)
    masks = [
        RandomMasker()(torch.zeros(64, 196, 0, device=device), rng_keys("mask", places.to(device)), 0.0, (14, 14))
        for device in ("cpu", "cuda")
    ]
    assert torch.equal(masks[0].hidden, masks[1].hidden.cpu())
