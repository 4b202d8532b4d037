"""Boxes and resampling: the laws of the boxes, and torchvision as the oracle of both."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as oracle

from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.data.resize import crop_resize, crop_resize_many, crop_resize_one
from mimkit.data.views import CenterCrop, RandomResizedCrop, ShiftedCrop, Whole

torch.set_num_threads(1)  # waiting threads cost more than they save on shared cores

sides = st.integers(8, 300)


def boxes_of(view, n, height, width, size=(32, 32), stream="test"):
    every = torch.ones(n, dtype=torch.int64)
    return view.boxes(rng_keys(stream, torch.arange(n)), every * height, every * width, size)


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.floats(0.05, 1.0), st.integers(0, 1000))
def test_boxes_lie_inside(height, width, least, seed):
    for view in (
        RandomResizedCrop(scale=(least, 1.0)),
        ShiftedCrop(places=9),
        Whole(),
        CenterCrop(),
        CenterCrop(fraction=1.0),
    ):
        boxes, flip = boxes_of(view, 64, height, width, stream=str(seed))
        top, left, h, w = boxes.unbind(1)
        assert boxes.dtype == torch.int64 and flip.dtype == torch.bool and flip.shape == (64,)
        assert (top >= 0).all() and (left >= 0).all() and (h >= 1).all() and (w >= 1).all()
        assert (top + h <= height).all() and (left + w <= width).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(24, 300), st.integers(24, 300), st.integers(0, 1000))
def test_shifted_crops_show_one_box_in_one_mirroring(height, width, seed):
    plain, moved = ShiftedCrop(), ShiftedCrop(places=32)
    (whole, flip), (first, mirrored), (second, also) = (
        boxes_of(view, 64, height, width, stream=str(seed)) for view in (RandomResizedCrop(), plain, moved)
    )
    assert torch.equal(flip, mirrored) and torch.equal(flip, also) and torch.equal(first[:, 2:], second[:, 2:])
    assert torch.equal(first[:, 2:], (whole[:, 2:] * 0.875).round().long())
    room = whole[:, 2:] - first[:, 2:]
    assert torch.equal(first[:, 0], whole[:, 0])
    assert torch.equal(first[:, 1], whole[:, 1] + torch.where(flip, room[:, 1], 0))  # the upper left as it is seen
    for box in (first, second):
        assert (box[:, :2] >= whole[:, :2]).all() and (box[:, :2] - whole[:, :2] <= room).all()
    move = (second - first)[:, :2].abs()
    assert (move <= room).all() and (second[:, 0] >= first[:, 0]).all()
    assert torch.equal(boxes_of(ShiftedCrop(places=1), 64, height, width, stream=str(seed))[0], first)


def test_shifts_are_even_over_the_margin():
    boxes, flip = boxes_of(ShiftedCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0), places=32), 6000, 256, 256)
    down, right = boxes[:, 0], torch.where(flip, 32 - boxes[:, 1], boxes[:, 1])
    for move in (down, right):
        count = move.bincount(minlength=32)
        assert len(count) == 32 and count.min() > 120 and count.max() < 260  # 0 to 31, about 188 each
    assert abs(torch.corrcoef(torch.stack([down, right]).float())[0, 1]) < 0.05
    assert boxes[:, 2:].unique().tolist() == [224]


def test_shifted_crops_that_cannot_be_meant_are_refused():
    for wrong in ({"margin": 1.0}, {"margin": -0.1}, {"places": -1}):
        with pytest.raises(UserError, match=f"view.{next(iter(wrong))}"):
            ShiftedCrop(**wrong)


def test_a_box_depends_on_its_own_key_and_size_alone():
    view = RandomResizedCrop()
    heights, widths = torch.randint(20, 400, (2, 50), generator=torch.Generator().manual_seed(0))
    all_keys = rng_keys("x", torch.arange(50))
    boxes, flip = view.boxes(all_keys, heights, widths, (32, 32))
    for i in (0, 7, 49):
        one = slice(i, i + 1)
        box, mirrored = view.boxes(all_keys[one], heights[one], widths[one], (32, 32))
        assert torch.equal(box[0], boxes[i]) and mirrored[0] == flip[i]


def test_boxes_reach_every_edge():
    boxes, _ = boxes_of(RandomResizedCrop(), 500, 12, 10)
    top, left, h, w = boxes.unbind(1)
    for start, length, side in ((top, h, 12), (left, w, 10)):
        inner = length < side
        assert (start[inner] == 0).any() and (start + length == side)[inner].any()
        assert (length == side).any()


def test_random_resized_crop_has_torchvisions_distribution():
    n, height, width = 4000, 120, 200
    boxes, flip = boxes_of(RandomResizedCrop(scale=(0.2, 1.0)), n, height, width)
    top, left, h, w = boxes.double().unbind(1)
    area, ratio = h * w / (height * width), w / h
    assert area.min() > 0.19 and area.max() <= 1 and ratio.min() > 0.73 and ratio.max() < 1.37
    torch.manual_seed(0)
    theirs = v2.RandomResizedCrop(32, (0.2, 1.0))
    drawn = [theirs.make_params([torch.empty(3, height, width)]) for _ in range(n)]
    for ours, name in ((top, "top"), (left, "left"), (h, "height"), (w, "width")):
        other = torch.tensor([float(one[name]) for one in drawn])
        error = math.hypot(ours.std(), other.std()) / math.sqrt(n)
        assert abs(ours.mean() - other.mean()) < 4.5 * error, name
        assert abs(ours.std() / other.std() - 1) < 0.06, name
    assert abs(flip.double().mean() - 0.5) < 4 * 0.5 / math.sqrt(n)


@pytest.mark.parametrize("height, width", [(20, 300), (300, 20), (50, 50)])
def test_the_fallback_is_the_largest_central_box(height, width):
    """A scale of 1 fits no aspect but the picture's own, so nearly every try fails, as in torchvision."""
    boxes, _ = boxes_of(RandomResizedCrop(scale=(1.0, 1.0), ratio=(0.9, 1.1)), 200, height, width)
    expected = {(20, 300): (0, 139, 20, 22), (300, 20): (139, 0, 22, 20), (50, 50): (0, 0, 50, 50)}
    common = boxes.unique(dim=0, return_counts=True)
    assert tuple(common[0][common[1].argmax()].tolist()) == expected[height, width]


def test_center_crop_is_resize_then_center():
    boxes, flip = boxes_of(CenterCrop(fraction=0.875), 1, 256, 512, (224, 224))
    assert boxes[0].tolist() == [16, 144, 224, 224] and not flip.any()
    boxes, _ = boxes_of(CenterCrop(fraction=1.0), 1, 100, 100, (32, 64))
    assert boxes[0].tolist() == [25, 0, 50, 100]
    boxes, _ = boxes_of(Whole(flip=1.0), 3, 28, 30)
    assert boxes[0].tolist() == [0, 0, 28, 30]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    "height, width, size", [(32, 32, (32, 32)), (40, 64, (24, 48)), (130, 96, (96, 64)), (20, 21, (48, 32))]
)
def test_crop_resize_equals_torchvision(height, width, size, interpolation):
    n = 40
    pictures = torch.randint(0, 256, (n, 3, height, width), generator=torch.Generator().manual_seed(1)).byte()
    view = RandomResizedCrop(interpolation=interpolation, scale=(0.05, 1.0))
    boxes, flip = boxes_of(view, n, height, width, size)
    assert flip.any() and not flip.all()
    ours = crop_resize(pictures, boxes, flip, size, interpolation)
    assert ours.dtype == torch.float32
    for i in range(n):
        reference = oracle.resized_crop(
            pictures[i].float(),
            *boxes[i].tolist(),
            list(size),
            interpolation=InterpolationMode(interpolation),
            antialias=True,
        ).clamp(0, 255)
        reference = reference.flip(2) if flip[i] else reference
        assert (ours[i] - reference).abs().max() < 2e-3
        uint8 = oracle.resized_crop(
            pictures[i], *boxes[i].tolist(), list(size), InterpolationMode(interpolation), antialias=True
        )
        uint8 = uint8.flip(2) if flip[i] else uint8
        one = crop_resize_one(pictures[i], boxes[i], bool(flip[i]), size, interpolation)
        assert one.dtype == torch.uint8 and (one.int() - uint8.int()).abs().max() <= 1


@pytest.mark.parametrize("side", [28, 80])
def test_whole_pictures_pass_unchanged(side):
    pictures = torch.randint(0, 256, (5, 1, side, side), generator=torch.Generator().manual_seed(1)).byte()
    boxes, _ = boxes_of(Whole(), 5, side, side)
    flip = torch.tensor([True, False, True, False, False])
    expected = torch.where(flip.view(-1, 1, 1, 1), pictures.flip(3), pictures)
    for way in (crop_resize, crop_resize_many):
        assert torch.equal(way(pictures, boxes, flip, (side, side)).float(), expected.float())
    assert not torch.equal(pictures, expected)  # the input is left alone


def test_many_agrees_with_the_matrix_products_on_photographs():
    """Above 56 px the CPU takes the uint8 path: the same picture up to rounding."""
    y, x = torch.meshgrid(torch.arange(80), torch.arange(90), indexing="ij")
    pictures = (127 + 100 * torch.sin(x / 9) * torch.cos(y / 7)).byte().expand(6, 3, 80, 90)
    boxes, flip = boxes_of(RandomResizedCrop(), 6, 80, 90)
    many = crop_resize_many(pictures, boxes, flip, (32, 40))
    assert many.dtype == torch.uint8
    assert (many.float() - crop_resize(pictures, boxes, flip, (32, 40))).abs().max() <= 2


def test_wrong_settings_are_answered():
    for make in (
        lambda: RandomResizedCrop(scale=(0.5, 0.2)),
        lambda: RandomResizedCrop(scale=(0.0, 1.0)),
        lambda: RandomResizedCrop(flip=2),
        lambda: RandomResizedCrop(ratio=(2.0, 1.0)),
        lambda: CenterCrop(fraction=0),
        lambda: Whole(flip=-1),
    ):
        with pytest.raises(UserError, match="view"):
            make()
