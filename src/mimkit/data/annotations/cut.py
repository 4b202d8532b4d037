"""Geometry of what is known of a picture: an Annotation and a box of its view enter, the view's Annotation leaves.

Boxes of views are (top, left, height, width) in whole pixels and may leave the picture.
"""

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from mimkit.core.annotation import VOID, Annotation, Joints


def cut_annotation(
    annotation: Annotation, box: Int64[Tensor, " 4"], flip: bool, size: tuple[int, int], joints: Joints | None = None
) -> Annotation:
    """What is known of the view that shows `box` of a picture at `size` (height, width), mirrored or not.

    Masks, classes and depths of pixels are those of the nearest pixel; beyond the picture there are none. Depths stay
    in meters, however large the view shows them. Boxes end with the view; with masks they are those of the masks that
    are seen (facebookresearch/detectron2: LSJ in configs/common/data). Objects of which nothing is seen are left out,
    and joints beyond the view are not labeled.
    """
    rows, columns = _sources(box[0], box[2], size[0]), _sources(box[1], box[3], size[1])
    if flip:
        columns = columns.flip(0)
    segments = None if annotation.segments is None else _nearest(annotation.segments, rows, columns, VOID)
    depth = None if annotation.depth is None else _nearest(annotation.depth, rows, columns, torch.nan)
    if annotation.boxes is None:
        return Annotation(size=size, segments=segments, depth=depth)
    zoom = torch.tensor(size) / box[2:]
    boxes = _cut_boxes(annotation.boxes, box, zoom, size, flip)
    masks = None if annotation.masks is None else _nearest(annotation.masks, rows, columns, False)
    areas = None if annotation.areas is None else annotation.areas * zoom.prod()
    if masks is not None:
        boxes, areas = boxes_of_masks(masks), masks.flatten(1).sum(1).float()
    view = Annotation(
        size=size,
        boxes=boxes,
        labels=annotation.labels,
        masks=masks,
        keypoints=_cut_keypoints(annotation.keypoints, box, zoom, size, flip, joints),
        areas=areas,
        crowd=annotation.crowd,
        segments=segments,
        depth=depth,
    )
    seen = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return view if seen.all() else view.at(seen)


def boxes_of_masks(masks: Bool[Tensor, "n H W"]) -> Float[Tensor, "n 4"]:
    """The smallest box around each mask: left, top, right, bottom; all 0 of an empty one."""
    edges = []
    for lines in (masks.any(1), masks.any(2)):  # columns, then rows
        length = lines.shape[1]
        first = lines.byte().argmax(1)
        last = length - lines.flip(1).byte().argmax(1)
        edges.append((first, torch.where(lines.any(1), last, first)))
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], 1).float()


def _sources(start: Tensor, length: Tensor, count: int) -> Int64[Tensor, " count"]:
    """Which pixel each of `count` pixels of a view shows along one axis: the one below its middle."""
    return ((torch.arange(count) + 0.5) * (length.item() / count) + start.item()).floor().long()


def _nearest(values: Shaped[Tensor, "*n H W"], rows: Tensor, columns: Tensor, empty: float) -> Shaped[Tensor, "*n h w"]:
    """Values at the crossings of rows and columns, `empty` beyond them."""
    height, width = values.shape[-2:]
    picked = values.index_select(-2, rows.clamp(0, height - 1)).index_select(-1, columns.clamp(0, width - 1))
    inside = ((rows >= 0) & (rows < height)).unsqueeze(1) & ((columns >= 0) & (columns < width))
    return picked if inside.all() else picked.masked_fill(~inside, empty)


def _cut_boxes(boxes: Tensor, box: Tensor, zoom: Tensor, size: tuple[int, int], flip: bool) -> Float[Tensor, "n 4"]:
    start, scale = box[:2].flip(0).repeat(2), zoom.flip(0).repeat(2)
    moved = (boxes - start) * scale
    if flip:
        moved = torch.stack([size[1] - moved[:, 2], moved[:, 1], size[1] - moved[:, 0], moved[:, 3]], 1)
    limits = torch.tensor([size[1], size[0], size[1], size[0]], dtype=moved.dtype)
    return moved.clamp(min=0).minimum(limits)


def _cut_keypoints(
    keypoints: Float[Tensor, "n J 3"] | None,
    box: Tensor,
    zoom: Tensor,
    size: tuple[int, int],
    flip: bool,
    joints: Joints | None,
) -> Float[Tensor, "n J 3"] | None:
    if keypoints is None:
        return None
    points = (keypoints[..., :2] - box[:2].flip(0)) * zoom.flip(0)
    visible = keypoints[..., 2]
    if flip:
        points = torch.stack([size[1] - points[..., 0], points[..., 1]], -1)
        if joints is not None:  # a left knee is a right one in the mirror
            points, visible = points[:, list(joints.mirrored)], visible[:, list(joints.mirrored)]
    inside = ((points >= 0) & (points < torch.tensor([size[1], size[0]]))).all(-1)
    cut = torch.cat([points, visible.unsqueeze(-1)], -1)
    return torch.where((inside & (visible > 0)).unsqueeze(-1), cut, 0.0)
