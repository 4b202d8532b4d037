"""The order of a run: every epoch shows every picture once, whatever lanes, ranks and interruptions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.data.order import BLOCK, Order, default_lanes, permuted
from mimkit.data.stream import Plan


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.integers(1, 70), st.sampled_from([96, 1000, 1024, 1025, 65537])), st.integers(0, 2**31))
def test_the_network_permutes_any_number_of_things(n, seed):
    places = permuted(rng_keys(seed), torch.arange(n), n)
    assert torch.equal(places.sort().values, torch.arange(n))


def test_the_network_is_as_it_was():
    """What runs have begun with: a change here would change them."""
    assert permuted(rng_keys(0), torch.arange(10), 10).tolist() == GOLDEN
    keys = rng_keys(torch.tensor([0, 0, 1]))
    assert permuted(keys, torch.tensor([3, 4, 3]), 10).tolist()[:2] == GOLDEN[3:5]


GOLDEN = [7, 4, 0, 1, 3, 5, 8, 2, 6, 9]


def test_places_move_as_by_chance():
    n, rounds = 1000, 200
    orders = torch.stack([permuted(rng_keys(seed), torch.arange(n), n) for seed in range(rounds)])
    steps = (orders[:, 1:] - orders[:, :-1]).abs().double().mean()
    assert steps == pytest.approx(n / 3, rel=0.01)  # of a random permutation: (n + 1) / 3
    # Where one thing goes is uniform: chi-square over ten parts has 9 degrees of freedom, mean 9 and variance 18.
    counts = np.stack([np.bincount(orders[:, place] * 10 // n, minlength=10) for place in range(0, n, 50)])
    chi = ((counts - rounds / 10) ** 2 / (rounds / 10)).sum(1)
    assert chi.mean() == pytest.approx(9, abs=4 * (18 / len(chi)) ** 0.5)
    # Neighbors go apart: how often the order of two is kept.
    assert (orders[:, 0] < orders[:, 1]).float().mean() == pytest.approx(0.5, abs=0.15)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.integers(0, 5), st.integers(0, 2**31), st.sampled_from([1, 2]))
def test_every_epoch_is_a_permutation(n, first_epoch, seed, version):
    order = Order(seed, n, 12, version=version)
    epoch, picture = order.at(torch.arange(first_epoch * n, (first_epoch + 3) * n))
    assert torch.equal(epoch, torch.arange(first_epoch, first_epoch + 3).repeat_interleave(n))
    epochs = picture.view(3, n)
    assert (epochs.sort(1).values == torch.arange(n)).all()
    if n > 8:
        assert not torch.equal(epochs[0], epochs[1])
    middle = torch.tensor([first_epoch * n + n // 2])
    assert order.at(middle)[1][0] == epochs[0, n // 2]


def in_epochs(order: Order, epochs: int) -> list[list[torch.Tensor]]:
    """Per epoch the pictures of each lane, in the order in which it shows them."""
    length, share = order.n // order.lanes, order.batch_size // order.lanes
    steps = -(-epochs * length // share)
    _, picture = order.at(torch.arange(steps * order.batch_size))
    lanes = picture.view(steps, order.lanes, share).transpose(0, 1).reshape(order.lanes, -1)
    return [list(lanes[:, number * length : (number + 1) * length]) for number in range(epochs)]


@pytest.mark.parametrize(
    ("n", "lanes", "window"), [(5000, 4, 512), (5003, 4, 512), (4096, 8, 256), (3001, 2, 4096), (100, 4, 256)]
)
def test_lanes_share_out_each_epoch(n, lanes, window):
    order = Order(5, n, 8 * lanes, lanes=lanes, window=window)
    absent = []
    for pictures in in_epochs(order, 3):
        seen = torch.cat(pictures)
        assert len(seen.unique()) == len(seen) == n - n % lanes
        absent.append(sorted(set(range(n)) - set(seen.tolist())))
    assert n % lanes == 0 or len({tuple(pictures) for pictures in absent}) > 1, "others wait each time"


def test_a_lane_reads_few_blocks_at_a_time():
    order = Order(5, 100_000, 64, lanes=8, window=1024)
    (pictures,) = in_epochs(order, 1)
    for lane in pictures:
        for window in lane.split(1024):
            # Four blocks of 256 that lie anywhere, each over the edge of two; one may go on at the set's beginning.
            assert len((window // BLOCK).unique()) <= 9
    first = torch.stack(pictures)[:, :1024]
    assert first.double().mean() == pytest.approx(50_000, abs=4 * 28_900 / 32**0.5), "32 blocks from anywhere"


def test_windows_are_mixed():
    """Of pictures that lie class by class in windows, no run is longer than in a full shuffle."""
    order = Order(1, 64 * 1024, 64, lanes=8, window=1024)
    (pictures,) = in_epochs(order, 1)
    steps = torch.stack([(lane[1:] - lane[:-1]) == 1 for lane in pictures]).float().mean()
    assert steps < 0.005  # neighbors of a block stay neighbors as seldom as in 1,024 shuffled ones


def test_epochs_of_lanes_differ():
    first, second = in_epochs(Order(5, 4096, 64, lanes=4), 2)
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize("micro_batch", [2, 4])
def test_ranks_share_out_the_lanes(world, micro_batch):
    def rows(world: int, micro_batch: int) -> dict[int, tuple[int, int, int]]:
        seen = {}
        for rank in range(world):
            plan = Plan(3, 999, 64, micro_batch, rank, world, lanes=8)
            rows = plan.rows(0, 4 * plan.accumulate)
            seen |= {
                key: facts
                for key, *facts in zip(
                    rows.mask.tolist(), rows.epoch.tolist(), rows.picture.tolist(), rows.views[0].tolist(), strict=True
                )
            }
        return seen

    assert rows(world, micro_batch) == rows(1, 64)
    lanes_of_rank = 8 // world
    plan = Plan(3, 9999, 64, micro_batch, world - 1, world, lanes=8)
    whole = Order(3, 9999, 64, lanes=8).at(torch.arange(64))[1].view(8, 8)
    assert torch.equal(plan.rows(0, plan.accumulate).picture, whole[-lanes_of_rank:].flatten())


def test_a_substitute_lies_near_where_there_are_lanes():
    picture = torch.arange(5003)
    epoch = torch.zeros_like(picture)
    near = Order(5, 5003, 64, lanes=4).substitute(epoch, picture, 1)
    assert (
        ((near // BLOCK) == (picture // BLOCK)).all() and near.max() < 5003 and (near != picture).float().mean() > 0.9
    )
    far = Order(5, 5003, 64).substitute(epoch, picture, 1)
    assert ((far // BLOCK) == (picture // BLOCK)).float().mean() < 0.2 and far.max() < 5003


def test_four_hundred_million_pictures_take_no_memory():
    import tracemalloc

    order = Order(0, 400_000_000, 4096, lanes=64)
    tracemalloc.start()
    before = torch.arange(4096)
    order.at(before + 4096 * 70_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"lanes": 7}, "a step of 64 pictures cannot take equally many of 7 lanes: use 4 lanes"),
        ({"lanes": 64, "n": 40}, "40 pictures are too few for 64 lanes: use 1"),
        ({"lanes": 4, "window": 100}, "a window of 100 pictures is less than a block: use 256 or more"),
        ({"lanes": 4, "world": 8}, "4 lanes do not divide over 8 processes: use 8 lanes"),
    ],
)
def test_lanes_that_do_not_fit_are_refused(settings, line):
    with pytest.raises(UserError, match=line):
        Plan(**(dict(seed=0, n=10_000, batch_size=64, micro_batch=2) | settings))


@pytest.mark.parametrize(
    ("n", "batch_size", "lanes"),
    [(10_000_000, 4096, 64), (10_000_000, 96, 32), (10_000_000, 25, 1), (5000, 64, 8), (100, 64, 1)],
)
def test_by_default_each_lane_has_blocks_of_its_own(n, batch_size, lanes):
    assert default_lanes(n, batch_size) == lanes
    Order(0, n, batch_size, lanes=lanes)
