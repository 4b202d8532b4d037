"""The loader: the same pictures, boxes and keys whatever the workers, ranks, micro batches and residency."""

import io
import itertools
import os
import signal
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.core.symmetry import turned
from mimkit.data.augment import RandAugment, erased
from mimkit.data.color import ColorAugment
from mimkit.data.decode import BadPicture
from mimkit.data.loader import Loader, ViewSettings, evaluation_batches, statistics
from mimkit.data.order import Order
from mimkit.data.pictures import Decoded, Pictures
from mimkit.data.sources import open_pictures
from mimkit.data.stream import Plan
from mimkit.data.values import Storage
from mimkit.data.views import CenterCrop, RandomResizedCrop, ShiftedCrop, Whole

torch.set_num_threads(1)  # waiting threads cost more than they save on shared cores

NONE = ColorAugment(jitter=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, gray=0.0, blur=0.0)
HALF = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


class Made(Pictures):
    """Smooth pictures made from their number; some are bad, one may have another size."""

    name = "made"
    storage = Storage(3)
    fingerprint = "made"

    def __init__(self, n: int = 40, bad: tuple[int, ...] = (), odd: int | None = None, side: int = 24) -> None:
        self.n, self.bad, self.odd, self.side = n, bad, odd, side
        self.labels = torch.arange(n) % 3

    def __len__(self) -> int:
        return self.n

    def size(self, i: int) -> tuple[int, int]:
        return (self.side, self.side)

    def where(self, i: int) -> str:
        return f"made/{i}"

    def read(self, i: int) -> torch.Tensor:
        if i in self.bad:
            raise BadPicture(f"bad {i}")
        side = self.side + (4 if i == self.odd else 0)
        y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        planes = [128 + 60 * torch.sin(x / 9 + i) * torch.cos(y / 8 + c) + i % 50 for c in range(3)]
        return torch.stack(planes).byte()


def loader(pictures=None, **how) -> Loader:
    pictures = pictures or Made()
    how = dict(seed=3, batch_size=12, micro_batch=12, view=RandomResizedCrop(), size=(16, 16), **HALF) | how
    settings = ViewSettings(
        **{name: how.pop(name) for name in ("view", "other_views", "size", "mean", "std", "flips") if name in how}
    )
    plan = {name: how.pop(name) for name in ("seed", "batch_size", "micro_batch", "rank", "world") if name in how}
    plan = Plan(n=len(pictures), other_views=len(settings.other_views), **plan)
    return Loader(pictures, settings, plan, **how)


def same(one, other, within: float = 0.0) -> None:
    one, other = list(one), list(other)
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.rng_keys, b.rng_keys) and torch.equal(a.index, b.index)
        assert torch.equal(a.crop, b.crop) and torch.equal(a.flip, b.flip)
        assert (a.symmetry is None) == (b.symmetry is None)
        assert a.symmetry is None or torch.equal(a.symmetry, b.symmetry)
        assert len(a.other_views) == len(b.other_views)
        for x, y in zip((a.images, *a.other_views), (b.images, *b.other_views), strict=True):
            assert x.shape == y.shape and (x - y).abs().max() <= within


def order(positions: int) -> Tensor:
    """Pictures at the first positions of the loader's run."""
    return Order(3, 40, 12).at(torch.arange(positions))[1]


def test_batches_cover_positions_in_order():
    seen = torch.cat([batch.index for batch in loader(resident=False).micro_batches(0, 10)])
    assert torch.equal(seen, order(120))
    assert torch.equal(seen[:40].sort().values, torch.arange(40))
    later = list(loader(resident=False).micro_batches(7, 8))
    assert torch.equal(later[0].index, seen[84:96])


@pytest.mark.parametrize("view", [RandomResizedCrop(), Whole()])
def test_workers_change_nothing(view):
    batches = list(loader(resident=False, workers=0, view=view).micro_batches(2, 6))
    same(batches, loader(resident=False, workers=2, view=view).micro_batches(2, 6))
    assert batches[0].images.dtype == torch.float32 and not torch.equal(batches[0].images, batches[1].images)


@pytest.mark.parametrize("resident", [True, False])
def test_ranks_and_micro_batches_share_out_the_same_global_batch(resident):
    def rows(parts):
        found = {}
        for batch in itertools.chain(*parts):
            for image, key, index in zip(batch.images, batch.rng_keys.tolist(), batch.index.tolist(), strict=True):
                assert key not in found
                found[key] = (index, image)
        return found

    whole = rows([loader(resident=resident).micro_batches(0, 5)])
    ranks = [loader(resident=resident, micro_batch=3, world=2, rank=rank) for rank in range(2)]
    assert ranks[0].accumulate == 2
    shared = rows([rank.micro_batches(0, 5) for rank in ranks])
    assert whole.keys() == shared.keys() and len(whole) == 60
    for key, (index, image) in whole.items():
        assert shared[key][0] == index and (shared[key][1] - image).abs().max() < 1e-5


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_and_streaming_see_the_same(workers):
    bad = (2, 3, 17, 31)
    resident = loader(Made(bad=bad), resident=True, workers=workers)
    streaming = loader(Made(bad=bad), resident=False, workers=workers)
    assert resident.resident and not streaming.resident
    streamed = list(streaming.micro_batches(0, 8))
    same(resident.micro_batches(0, 8), streamed, within=3 / 255 / 0.25)  # uint8 rounding after each axis
    assert resident.skipped == streaming.skipped == {i: f"bad {i}" for i in bad}
    assert {picture for batch in streamed for picture, _ in batch.skipped} == set(bad)
    shown = torch.cat([batch.index for batch in streamed])
    wanted = order(96)
    assert not set(shown.tolist()) & set(bad)
    good = torch.tensor([picture not in bad for picture in wanted.tolist()])
    assert torch.equal(shown[good], wanted[good])


@pytest.mark.parametrize("accumulate", [1, 3])
def test_how_many_steps_are_drawn_at_once_changes_nothing(accumulate, monkeypatch):
    how = dict(pictures=Made(bad=(5, 6)), micro_batch=12 // accumulate)
    together = list(loader(**how).micro_batches(3, 9))
    for drawn in (1, 30):
        monkeypatch.setattr("mimkit.data.loader._DRAWN", drawn)
        same(together, loader(**how).micro_batches(3, 9))
    same(together[2 * accumulate :], loader(**how).micro_batches(5, 9))


STRONG = ColorAugment(solarize=0.3, gray=0.3)
OTHERS = (
    RandomResizedCrop(),  # as the first
    RandomResizedCrop(scale=(0.1, 0.5), size=12, color=STRONG),
    Whole(augment=RandAugment(), erase=0.5),
    RandomResizedCrop(interpolation="bilinear", color=STRONG, augment=RandAugment(), erase=0.5),
)


def test_the_keys_of_views_are_their_addresses():
    rows = Plan(3, 40, 12, 12, 0, 1, other_views=3).rows(2, 3)  # goes on into the second epoch
    assert torch.equal(
        rows.views[0], rng_keys("crop", 3, rows.epoch, rows.picture)
    )  # what crops of old runs were drawn from
    assert len(rows.views.unique()) == 4 * 36 and rows.epoch.unique().tolist() == [0, 1]
    assert torch.equal(rows.views[:1], Plan(3, 40, 12, 12, 0, 1).rows(2, 3).views)


@pytest.mark.parametrize("resident", [True, False])
def test_further_views_have_addresses_too(resident):
    """Whatever the workers, ranks and the first step; the first view is as it was without others."""
    how = dict(pictures=Made(bad=(5, 6)), resident=resident)
    batches = list(loader(**how, other_views=OTHERS).micro_batches(0, 8))
    alone = list(loader(**how).micro_batches(0, 8))
    for one, other in zip(batches, alone, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.crop, other.crop)
        assert [view.shape for view in one.other_views] == [(12, 3, side, side) for side in (16, 12, 16, 16)]
        assert (
            all(view.is_contiguous() and view.dtype == torch.float32 for view in one.other_views)
            and not other.other_views
        )
    same(batches[3:], loader(**how, other_views=OTHERS).micro_batches(3, 8))  # resumed
    same(batches, loader(**how, other_views=OTHERS, workers=2).micro_batches(0, 8))
    parts = [loader(**how, other_views=OTHERS, world=2, rank=r, micro_batch=3).micro_batches(0, 8) for r in range(2)]
    pairs = [batch for steps in zip(*parts, strict=True) for batch in steps]  # in the order of the global batch
    for number in range(len(OTHERS)):
        whole = torch.cat([batch.other_views[number] for batch in batches])
        assert (whole - torch.cat([batch.other_views[number] for batch in pairs])).abs().max() < 1e-5
    other_seed = next(iter(loader(**how, other_views=OTHERS, seed=4).micro_batches(0, 1)))
    for a, b in zip(batches[0].other_views, other_seed.other_views, strict=True):
        assert not torch.equal(a, b)


def test_memory_and_streaming_see_the_same_further_views():
    how = dict(pictures=Made(bad=(2, 3)), other_views=OTHERS)
    for a, b in zip(*(loader(**how, resident=r).micro_batches(0, 8) for r in (True, False)), strict=True):
        assert torch.equal(a.other_views[2], b.other_views[2])  # both from whole numbers
        assert (a.other_views[3] - b.other_views[3]).abs().max() < 1e-5
        assert (a.other_views[0] - b.other_views[0]).abs().max() < 3 / 255 / 0.25  # uint8 rounding after each axis
        away = (a.other_views[1] - b.other_views[1]).abs()
        assert away.mean() < 1 / 255 / 0.25 and away.max() < 40 / 255 / 0.25  # a turn of hue makes it larger


@pytest.mark.parametrize("resident", [True, False])
def test_aligned_views_show_one_box(resident):
    """Without a shift the very same images, a substitute's too; with one the same size and mirroring, elsewhere."""
    still, moved = ShiftedCrop(), ShiftedCrop(places=32, margin=0.4)
    how = dict(view=still, other_views=(still, replace(still, color=NONE)), resident=resident)
    for batch in loader(Made(bad=(5, 6)), **how).micro_batches(0, 6):
        assert torch.equal(batch.images, batch.other_views[0])
        assert (batch.images - batch.other_views[1]).abs().max() < 1e-5
    how = dict(
        view=replace(still, margin=0.4), other_views=(moved,), size=(24, 24), mean=(0.0,) * 3, std=(1 / 255,) * 3
    )
    moves = []
    for batch in loader(Charted(odd=None), resident=resident, **how).micro_batches(0, 6):
        rows, columns = ([view[:, c].mean((1, 2)) / 4 for view in (batch.images, *batch.other_views)] for c in (0, 1))
        signs = 1 - 2 * batch.flip.float()
        moves.append(torch.stack([rows[1] - rows[0], signs * (columns[1] - columns[0])]))
    moves = torch.cat(moves, 1)
    assert moves.min() > -0.1 and (moves.mean(dim=1) > 0.5).all()


def test_memory_and_streaming_see_the_same_aligned_views():
    how = dict(pictures=Made(bad=(2, 3)), view=ShiftedCrop(), other_views=(ShiftedCrop(places=32),))
    both = (loader(**how, resident=r).micro_batches(0, 8) for r in (True, False))
    same(*both, within=3 / 255 / 0.25)


@pytest.mark.parametrize("resident", [True, False])
def test_further_views_show_the_same_pictures_by_boxes_of_their_own(resident):
    pictures = Charted(odd=None)
    views = (RandomResizedCrop(scale=(0.3, 0.7)), CenterCrop(fraction=0.5), Whole(flip=0.0, color=NONE))
    how = dict(view=views[0], other_views=views, size=(24, 24), mean=(0.0,) * 3, std=(1 / 255,) * 3)
    middles = []
    for batch in loader(pictures, resident=resident, **how).micro_batches(0, 6):
        again, central, whole = batch.other_views
        assert all((view[:, 2] - 32).abs().max() < 0.51 for view in (again, central, whole))
        assert (central[:, 0].mean((1, 2)) / 4 - 11.5).abs().max() < 0.3
        assert (central[:, 1].mean((1, 2)) / 4 - 15.5).abs().max() < 0.3
        assert (whole[:, 1].mean((1, 2)) / 4 - 15.5).abs().max() < 0.1
        middles.append(torch.stack([view[:, 1].mean((1, 2)) / 4 for view in (batch.images, again)]))
    first, second = torch.cat(middles, 1)
    assert (first - second).abs().mean() > 1 and torch.corrcoef(torch.stack([first, second]))[0, 1].abs() < 0.5


@pytest.mark.parametrize("resident", [True, False])
def test_colors_change_before_normalization_and_erasing_comes_after(resident):
    n = dict(size=(24, 24), resident=resident, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    black = replace(NONE, jitter=1.0, brightness=0.5)
    plain, changed, noisy = (
        next(loader(**n, view=Whole(flip=0.0, **part)).micro_batches(0, 1)).images
        for part in ({}, {"color": black}, {"color": black, "erase": 1.0})
    )
    mean, std = (torch.tensor(n[name]).view(3, 1, 1) for name in ("mean", "std"))
    rows = Plan(3, 40, 12, 12, 0, 1).rows(0)
    expected = (black(plain * std + mean, rows.views[0]) - mean) / std
    assert (changed - expected).abs().max() < 1e-4 and (changed - plain).abs().mean() > 0.1
    assert torch.allclose(noisy, erased(changed.clone(), rows.views[0], 1.0)) and not torch.allclose(noisy, changed)


def test_colors_that_the_pictures_do_not_have_are_refused_at_once():
    bands = Decoded("bands", torch.zeros(30, 4, 20, 20, dtype=torch.uint8))
    how = dict(mean=(0.5,) * 4, std=(0.5,) * 4)
    with pytest.raises(UserError, match=r"4 channels have no color\.saturation and color\.hue and color\.gray"):
        loader(bands, other_views=(Whole(color=ColorAugment()),), **how)
    with pytest.raises(UserError, match=r"view\.augment needs pictures of 1 or 3 channels, these have 4"):
        loader(bands, view=Whole(augment=RandAugment()), **how)
    gray = Decoded("gray", bands.tensor()[:, :1] + torch.arange(20, dtype=torch.uint8))
    how = dict(mean=(0.5,), std=(0.5,), other_views=OTHERS)
    for one, other in zip(*(loader(gray, resident=r, **how).micro_batches(0, 2) for r in (True, False)), strict=True):
        assert one.other_views[3].shape == (12, 1, 16, 16) and torch.equal(one.other_views[2], other.other_views[2])


def test_a_substitute_depends_on_the_epoch():
    shown = torch.cat([batch.index for batch in loader(Made(bad=(5,)), resident=True).micro_batches(0, 10)])
    wanted = order(120)
    assert len(set(shown[wanted == 5].tolist())) > 1


class Charted(Made):
    """Every pixel tells its row (channel 0), its column (1) and the width of its picture (2)."""

    def size(self, i: int) -> tuple[int, int]:
        return self.side, self.side + 8 + (0 if self.odd is None else i % 3 * 8)

    def read(self, i: int) -> torch.Tensor:
        if i in self.bad:
            raise BadPicture(f"bad {i}")
        height, width = self.size(i)
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        return torch.stack([4 * y, 4 * x, torch.full_like(x, width)]).byte()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    "resident, workers, odd", [(True, 0, None), (True, 3, None), (False, 0, None), (False, 3, None), (False, 0, 1)]
)
@pytest.mark.parametrize("view", [RandomResizedCrop(scale=(0.3, 0.7)), Whole(), CenterCrop(fraction=0.5)])
def test_crop_and_flip_say_where_the_view_lies(view, resident, workers, odd):
    """Pictures whose pixels are their coordinates: middle and slope of the view tell its box."""
    pictures = Charted(bad=(2, 3, 17, 31), odd=odd)
    how = dict(view=view, resident=resident, workers=workers, size=(24, 24), mean=(0.0,) * 3, std=(1 / 255,) * 3)
    flips = []
    for batch in loader(pictures, **how).micro_batches(0, 6):
        assert batch.crop.dtype == torch.float32 and batch.flip.dtype == torch.bool
        heights, widths = torch.tensor([pictures.size(i) for i in batch.index.tolist()]).T
        box = batch.crop * torch.stack([heights, widths] * 2, 1)  # in pixels
        assert torch.allclose(box, box.round(), atol=1e-4) and (batch.crop[:, :2] + batch.crop[:, 2:] < 1.0001).all()
        shown = torch.where(batch.flip.view(-1, 1, 1, 1), batch.images.flip(3), batch.images)
        assert (shown[:, 2] - widths.view(-1, 1, 1)).abs().max() < 0.51
        lines = (shown[:, 0].mean(2) / 4, shown[:, 1].mean(1) / 4)  # rows' and columns' numbers in the picture
        for start, length, line in zip(box[:, :2].T, box[:, 2:].T, lines, strict=True):
            assert (line.mean(1) - (start + (length - 1) / 2)).abs().max() < 0.2
            assert ((line[:, -6:].mean(1) - line[:, :6].mean(1)) * 24 / 18 - length).abs().max() < 0.5
        flips.append(batch.flip)
    assert torch.cat(flips).any() == (not isinstance(view, CenterCrop))


DIHEDRAL = dict(
    other_views=(Whole(flip=0.0, size=12), RandomResizedCrop(erase=0.5)),
    flips="dihedral",
    batch_size=40,
    micro_batch=40,
)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("size, kinds", [((16, 16), 8), ((16, 20), 4)])
def test_dihedral_flips_turn_each_view_by_itself(size, kinds, resident):
    how = DIHEDRAL | dict(resident=resident, size=size)
    turns = []
    plain = loader(**how | {"flips": "left-right"}).micro_batches(0, 8)
    for upright, batch in zip(plain, loader(**how).micro_batches(0, 8), strict=True):
        assert upright.symmetry is None and torch.equal(upright.flip, batch.flip)
        assert torch.equal(batch.images, turned(upright.images, batch.symmetry))
        for view, before in zip(batch.other_views, upright.other_views, strict=True):
            options = torch.stack([turned(before, torch.full((40,), number)) for number in range(8)])
            fits = (options == view).flatten(2).all(2)
            assert fits.any(0).all(), "a symmetry of what the view would have been"
            turns.append(fits.int().argmax(0))
            assert not torch.equal(turns[-1], batch.symmetry), "drawn by itself"
        turns.append(batch.symmetry)
    assert len(torch.cat(turns[2::3]).unique()) == kinds == len(torch.cat(turns[1::3]).unique())
    assert len(torch.cat(turns[0::3]).unique()) == 8, "a square view of its own size"


@pytest.mark.parametrize("workers", [0, 2])
def test_dihedral_flips_are_the_same_in_memory_and_streamed(workers):
    one = loader(Made(bad=(5, 9)), resident=True, **DIHEDRAL).micro_batches(0, 4)
    other = loader(Made(bad=(5, 9)), resident=False, workers=workers, **DIHEDRAL).micro_batches(0, 4)
    same(one, other, within=3 / 255 / 0.25)


def test_views_are_what_the_boxes_say():
    pictures = Made()
    batch = next(loader(pictures, size=(24, 24), view=Whole(flip=0.0), resident=False).micro_batches(0, 1))
    for image, index in zip(batch.images, batch.index.tolist(), strict=True):
        expected = (pictures.read(index) / 255 - 0.5) / 0.25
        assert (image - expected).abs().max() < 1e-5


def test_normalization_is_per_channel():
    how = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 0.125), "size": (24, 24), "view": Whole(flip=0.0)}
    for resident in (True, False):
        batch = next(loader(resident=resident, **how).micro_batches(0, 1))
        raw = Made().read(int(batch.index[4])) / 255
        for channel in range(3):
            expected = (raw[channel] - how["mean"][channel]) / how["std"][channel]
            assert (batch.images[4, channel] - expected).abs().max() < 1e-5


def test_residence_is_decided_by_size_and_memory():
    assert loader().resident
    assert not loader(memory_limit=40 * 3 * 24 * 24 - 1).resident
    assert loader(memory_limit=40 * 3 * 24 * 24).resident
    pixels = Decoded("held", torch.zeros(30, 3, 20, 20, dtype=torch.uint8))
    assert loader(pixels, memory_limit=1).resident and not loader(pixels, resident=False).resident


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_of_another_size_turns_it_to_streaming(workers):
    told = []
    odd = loader(Made(n=600, odd=555), workers=workers, log=told.append)
    assert not odd.resident and any("stream" in line for line in told)
    same(odd.micro_batches(0, 50), loader(Made(n=600, odd=555), resident=False).micro_batches(0, 50))
    with pytest.raises(UserError, match="made/555"):
        loader(Made(n=600, odd=555), resident=True)


@pytest.mark.parametrize("resident", [True, False])
def test_a_set_with_nothing_to_show_is_refused(resident):
    with pytest.raises(UserError, match="hardly any picture of made can be read; for example made/"):
        next(loader(Made(bad=tuple(range(40))), resident=resident or "auto").micro_batches(0, 1))


@pytest.mark.parametrize(
    "batch, micro, world, fix",
    [
        (10, 4, 1, "batch size 8 or micro batches of 2"),
        (12, 4, 2, "batch size 16 or micro batches of 3"),
        (9, 4, 2, "batch size 8"),
    ],
)
def test_a_batch_that_does_not_divide_is_answered(batch, micro, world, fix):
    with pytest.raises(UserError, match=fix):
        loader(batch_size=batch, micro_batch=micro, world=world)


class Deadly(Made):
    """Picture 20 kills the process that reads it."""

    main = os.getpid()

    def read(self, i: int) -> torch.Tensor:
        if i == 20 and os.getpid() != self.main:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(i)


def test_a_dead_worker_is_one_line():
    with pytest.raises(UserError, match=r"killed.*fewer workers than 2") as caught:
        list(loader(Deadly(), resident=False, workers=2).micro_batches(0, 4))
    assert "\n" not in str(caught.value)


class Wrong(Made):
    def read(self, i: int) -> torch.Tensor:
        raise UserError("needs an extra")


def test_a_users_error_in_a_worker_stays_one_line():
    with pytest.raises(UserError) as caught:
        list(loader(Wrong(), resident=False, workers=1).micro_batches(0, 1))
    assert str(caught.value) == "needs an extra"


def test_stopping_early_ends_the_workers_and_leaves_the_global_generator_alone():
    def children() -> set[str]:
        listed = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
        return set(listed.read_text().split()) if listed.exists() else set()

    state, before = torch.random.get_rng_state(), children()  # other tests may have left a fork server
    batches = loader(resident=False, workers=2).micro_batches(0, 1000)
    next(batches)
    workers = children() - before
    assert len(workers) == 2 or not children()
    batches.close()
    assert torch.equal(state, torch.random.get_rng_state())
    assert not workers & children()


def test_evaluation_shows_every_good_picture_once_in_order():
    pictures, skipped = Made(n=30, bad=(4, 9)), {}
    found = list(evaluation_batches(pictures, size=(16, 16), batch_size=8, skipped=skipped, **HALF))
    index = torch.cat([index for _, _, index in found])
    assert index.tolist() == [i for i in range(30) if i not in (4, 9)] and skipped.keys() == {4, 9}
    assert torch.equal(torch.cat([labels for _, labels, _ in found]), index % 3)
    workers = list(evaluation_batches(pictures, size=(16, 16), batch_size=8, workers=2, **HALF))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(found, workers, strict=True))
    held = Decoded("held", torch.stack([Made().read(i) for i in range(30)]))
    images = torch.cat([images for images, labels, _ in evaluation_batches(held, size=(16, 16), **HALF)])
    assert (images[index] - torch.cat([images for images, _, _ in found])).abs().max() < 3 / 255 / 0.25
    whole = next(evaluation_batches(pictures, size=(24, 24), view=CenterCrop(fraction=1.0), **HALF))[0]
    assert (whole[0] - (pictures.read(0) / 255 - 0.5) / 0.25).abs().max() < 1e-5
    few = torch.cat([index for *_, index in evaluation_batches(held, size=(16, 16), limit=7, **HALF)])
    assert len(set(few.tolist())) == 7 and few.tolist() == sorted(few.tolist()) and few[-1] > 20
    mixed = [
        torch.cat([index for *_, index in evaluation_batches(one, size=(16, 16), limit=20, shuffle=True, **HALF)])
        for one in (held, Made(n=30))
    ]
    assert torch.equal(*mixed) and mixed[0].tolist() != sorted(mixed[0].tolist())
    usual = torch.cat([index for *_, index in evaluation_batches(held, size=(16, 16), limit=20, **HALF)])
    assert torch.equal(mixed[0].sort().values, usual) and (mixed[0][:5] > 15).any()


def test_statistics_pool_all_pixels():
    pictures = Made(n=10, bad=(3,))
    pixels = torch.cat([pictures.read(i).flatten(1) for i in range(10) if i != 3], 1).double() / 255
    mean, std = statistics(pictures)
    assert torch.allclose(torch.tensor(mean).double(), pixels.mean(1), atol=2e-6)
    assert torch.allclose(torch.tensor(std).double(), pixels.std(1, correction=0), atol=2e-6)
    assert statistics(Made(n=500), sample_size=20) == statistics(Made(n=500), sample_size=20)
    assert statistics(Decoded("one", torch.full((6, 1, 8, 8), 9, dtype=torch.uint8)))[1][0] > 0


def test_the_folder_of_bad_files(tmp_path):
    """Design section 12: every kind of bad file beside good ones; the run goes on, the list is right."""

    def save(name: str, picture: Image.Image, **how) -> None:
        picture.save(tmp_path / name, **how)

    y, x = np.mgrid[0:40, 0:56]
    color = np.dstack([128 + 90 * np.sin(x / 15), 128 + 90 * np.cos(y / 13), 90 + x + y]).astype(np.uint8)
    right = {}
    for number in range(30):
        right[f"good{number:02}.jpg"] = np.roll(color, number, 1)
        save(f"good{number:02}.jpg", Image.fromarray(np.roll(color, number, 1)), quality=95, subsampling=0)
    turned = Image.Exif()
    turned[0x0112] = 6
    save("rotated.jpg", Image.fromarray(np.rot90(color).copy()), exif=turned, quality=95, subsampling=0)
    right["rotated.jpg"] = color
    save("sixteen.png", Image.fromarray(color[..., 2].astype(np.uint16) * 257))
    right["sixteen.png"] = color[..., 2:].repeat(3, 2)
    palette = Image.fromarray(color).quantize(200)
    save("palette.png", palette, transparency=bytes([0] * 50))
    right["palette.png"] = np.array(palette.convert("RGB"))
    save(
        "cmyk.jpg",
        Image.fromarray(np.dstack([255 - color, np.zeros_like(x, np.uint8)]), "CMYK"),
        quality=95,
        subsampling=0,
    )
    right["cmyk.jpg"] = color
    gray = Image.fromarray(color[..., 0])
    save("animated.gif", gray, save_all=True, append_images=[Image.new("L", (56, 40))])
    right["animated.gif"] = color[..., :1].repeat(3, 2)
    save("\u732b \u00fcber.JPG", Image.fromarray(color), format="JPEG", quality=95, subsampling=0)
    right["\u732b \u00fcber.JPG"] = color

    (tmp_path / "zero.jpg").write_bytes(b"")
    (tmp_path / "words.jpg").write_text("words " * 100)
    whole = (tmp_path / "good00.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    save("one.png", Image.new("RGB", (1, 1)))
    out = io.BytesIO()
    Image.new("L", (16, 16)).save(out, "PNG")
    bomb = bytearray(out.getvalue())
    bomb[16:24] = struct.pack(">II", 40_000, 40_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bytes(bomb[12:29])))
    (tmp_path / "bomb.png").write_bytes(bomb)

    pictures = open_pictures([str(tmp_path)], "all")
    assert len(pictures) == 41 and pictures.channels == 3
    names = [Path(pictures.where(i)).name for i in range(41)]
    for number, name in enumerate(names):
        if name in right:
            error = pictures.read(number).permute(1, 2, 0).numpy().astype(int) - right[name]
            assert np.abs(error).max() <= (12 if name.lower().endswith("jpg") else 1), name
            assert pictures.size(number) == (40, 56), name
    reasons = {}
    for workers in (0, 2):
        train = loader(pictures, resident=False, batch_size=41, micro_batch=41, workers=workers)
        batches = list(train.micro_batches(0, 2))
        assert all(torch.isfinite(batch.images).all() for batch in batches)
        reasons[workers] = {names[i]: reason for i, reason in train.skipped.items()}
    assert reasons[0] == reasons[2]
    assert reasons[0] == {
        "zero.jpg": "zero bytes",
        "words.jpg": "not a picture that can be read",
        "truncated.jpg": "truncated",
        "one.png": "1x1: smaller than 8 pixels",
        "bomb.png": reasons[0]["bomb.png"],
    }
    assert "larger than" in reasons[0]["bomb.png"]
