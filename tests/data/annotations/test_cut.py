"""One box moves a picture and all that is known of it alike."""

import numpy as np
import pytest
import torch

from mimkit.core.annotation import VOID, Annotation, Joints
from mimkit.core.randomness import rng_keys
from mimkit.data.annotations.annotated import Annotated
from mimkit.data.annotations.cut import boxes_of_masks, cut_annotation
from mimkit.data.loader import Loader, Plan, ViewSettings
from mimkit.data.pictures import Decoded
from mimkit.data.resize import crop_beyond
from mimkit.data.views import RandomResizedCrop, ScaleJitter

COLORS = torch.tensor([[0, 0, 0], [255, 0, 0], [0, 255, 0]], dtype=torch.uint8)
JOINTS = Joints(names=("left", "right"), mirrored=(1, 0))
HEIGHT, WIDTH = 24, 40


def scene(number: int = 0) -> tuple[torch.Tensor, Annotation]:
    """A picture with a red and a green box, each with joints in two corners, and what is known of it."""
    boxes = torch.tensor([[4.0, 6.0, 14.0, 18.0], [20.0 + number, 2.0, 36.0, 12.0]])
    masks = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    segments = masks[0].short() + 2 * masks[1].short()
    corners = torch.stack([boxes[:, :2] + 0.5, boxes[:, 2:] - 0.5], 1)
    annotation = Annotation(
        size=(HEIGHT, WIDTH),
        boxes=boxes,
        labels=torch.tensor([0, 1]),
        masks=masks,
        keypoints=torch.cat([corners, torch.full((2, 2, 1), 2.0)], 2),
        areas=masks.flatten(1).sum(1).float(),
        crowd=torch.zeros(2, dtype=torch.bool),
        segments=segments,
        depth=segments.float() + 1,
    )
    return COLORS[segments.long()].permute(2, 0, 1), annotation


class Scenes(Annotated):
    """Several scenes in memory."""

    task, categories, joints, has_masks = "detect", ("red", "green"), JOINTS, True

    def __init__(self, count: int = 6) -> None:
        super().__init__(Decoded("scenes", torch.stack([scene(i)[0] for i in range(count)])))

    def annotation(self, i: int) -> Annotation:
        return scene(i)[1]

    @property
    def annotations_fingerprint(self) -> str:
        return "scenes"


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("box", [(0, 0, 24, 40), (4, 2, 12, 20), (-6, -10, 48, 80), (10, 12, 24, 40)])
def test_what_is_known_moves_with_the_picture(box, flip):
    picture, annotation = scene()
    size = (48, 80)
    place = torch.tensor(box)
    view = crop_beyond(picture, place, flip, size, "bilinear")
    cut = cut_annotation(annotation, place, flip, size, JOINTS)
    assert cut.segments is not None and cut.masks is not None and cut.boxes is not None and cut.depth is not None
    # In the middle of each color, where resizing blends nothing, pixels and classes say the same.
    for value, color in enumerate(COLORS.int()):
        pure = ((view.int() - color.view(3, 1, 1)).abs() < 30).all(0)
        assert pure.any() or value == 0 or not (cut.segments == value).any()
        assert (cut.segments[pure] == value).float().mean() > 0.97 if pure.any() else True
        known = cut.segments >= 0
        assert (cut.depth[known] == cut.segments[known] + 1).all()
    for label, mask, edges in zip(cut.labels.tolist(), cut.masks, cut.boxes, strict=True):
        assert torch.equal(mask, cut.segments == label + 1)
        assert torch.equal(boxes_of_masks(mask[None])[0], edges)


def test_beyond_the_picture_nothing_is_known():
    _, annotation = scene()
    cut = cut_annotation(annotation, torch.tensor([0, 0, 48, 80]), False, (48, 80))
    assert (cut.segments[24:] == VOID).all() and (cut.segments[:, 40:] == VOID).all() and not cut.masks[:, 24:].any()
    assert cut.depth[24:].isnan().all() and (cut.segments[:24, :40] == annotation.segments).all()


def test_without_masks_boxes_end_with_the_view_and_lost_objects_are_left_out():
    _, annotation = scene()
    bare = Annotation(size=annotation.size, boxes=annotation.boxes, labels=annotation.labels, areas=annotation.areas)
    cut = cut_annotation(bare, torch.tensor([0, 0, 24, 16]), False, (48, 32))
    assert cut.labels.tolist() == [0] and cut.boxes.tolist() == [[8, 12, 28, 36]]
    mirrored = cut_annotation(bare, torch.tensor([0, 0, 24, 16]), True, (48, 32))
    assert mirrored.boxes.tolist() == [[4, 12, 24, 36]]


def test_mirrored_joints_change_names():
    _, annotation = scene()
    cut = cut_annotation(annotation, torch.tensor([0, 0, HEIGHT, WIDTH]), True, (HEIGHT, WIDTH), JOINTS)
    first = annotation.keypoints[0]
    assert cut.keypoints[0, 1].tolist() == [WIDTH - first[0, 0], first[0, 1], 2]
    assert cut.keypoints[0, 0].tolist() == [WIDTH - first[1, 0], first[1, 1], 2]
    outside = cut_annotation(annotation, torch.tensor([0, 0, 24, 10]), False, (24, 10), JOINTS)
    assert outside.keypoints[0].tolist() == [[4.5, 6.5, 2.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("covers", [False, True])
def test_scale_jitter_shows_the_picture_at_the_scales_it_names(covers):
    view = ScaleJitter(scale=(0.5, 2.0), covers=covers)
    heights, widths = torch.full((4000,), 30), torch.full((4000,), 60)
    boxes, flip = view.boxes(rng_keys("test", torch.arange(4000)), heights, widths, (64, 64))
    fit = 64 / 30 if covers else 64 / 60
    zoom = 64 / boxes[:, 2] / fit
    assert abs(zoom.min() - 0.5) < 0.02 and 1.9 < zoom.max() < 2.1 and abs(zoom.mean() - 1.25) < 0.03
    assert 0.45 < flip.float().mean() < 0.55 and (boxes[:, 0] >= 0).all() and (boxes[:, 1] >= 0).all()
    for start, length, side in ((0, 2, 30), (1, 3, 60)):
        larger = boxes[:, length] >= side
        assert larger.any() and (boxes[larger, start] == 0).all()
        assert (boxes[~larger, start] + boxes[~larger, length] <= side).all()
    smaller = boxes[:, 3] < 60
    assert (boxes[smaller, 1] > 0).any()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_bring_the_targets_of_their_images(workers):
    pictures = Scenes()
    settings = ViewSettings(view=RandomResizedCrop(scale=(0.3, 1.0)), size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    plan = Plan(seed=3, n=len(pictures), batch_size=4, micro_batch=2)
    loader = Loader(pictures, settings, plan, workers=workers)
    assert not loader.resident
    batches = list(loader.micro_batches(0, 3))
    assert len(batches) == 6
    for batch in batches:
        assert len(batch.targets) == 2
        for image, target in zip(batch.images, batch.targets, strict=True):
            assert target.size == (32, 32) and target.segments.shape == (32, 32)
            red = (image[0] > 0.9) & (image[1] < -0.9)
            assert (target.segments[red] == 1).all() if red.any() else True
    again = list(Loader(pictures, settings, plan, workers=0).micro_batches(0, 3))
    for one_batch, same in zip(batches, again, strict=True):
        for target, repeated in zip(one_batch.targets, same.targets, strict=True):
            np.testing.assert_array_equal(target.segments.numpy(), repeated.segments.numpy())
            assert torch.equal(target.boxes, repeated.boxes)
