"""Heads of boxes: maps of a pyramid enter torchvision's Mask R-CNN, objects of a picture leave.

torchvision's parts are taken as they are, but for three: anchors and pools go by the strides that the pyramid says
instead of those that the sizes of maps suggest, pools are aligned, and what heads say is float32 under autocast.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign, box_area, roi_align

from mimkit.core.errors import at_least, within

ANCHOR = 8  # side of an anchor in places of its map: 32 to 512 pixels at strides of 4 to 64
RATIOS = (0.5, 1.0, 2.0)  # height to width of anchors
USUAL = 224  # side in pixels of boxes that are read from the map of stride 16 on (Lin et al. 2017)
HALF = 0.5  # probability from which a pixel belongs to an object
BOX_SIDE, MASK_SIDE = 7, 14  # of what is pooled from a box


@dataclass(frozen=True, kw_only=True)
class Detections:
    """The n objects that were detected in one image, the surest first."""

    size: tuple[int, int]
    """Height and width of the image in pixels."""
    boxes: Float[Tensor, "n 4"]
    """Left, top, right, bottom in pixels."""
    labels: Int64[Tensor, " n"]
    """Class of each, 0 for the first."""
    scores: Float[Tensor, " n"]
    """Probability of that class."""
    masks: Float[Tensor, "n m m"] | None = None
    """How likely each of m x m parts of its box belongs to an object; `paste` makes pixels of it."""


def paste(masks: Float[Tensor, "n m m"], boxes: Float[Tensor, "n 4"], size: tuple[int, int]) -> Bool[Tensor, "n H W"]:
    """The pixels of each object in a picture of `size`, of masks over boxes in its pixels.

    The middle of a pixel is read from the mask, bilinear, with 0 around it.
    """
    pixels = torch.zeros(len(masks), *size, dtype=torch.bool, device=masks.device)
    for mask, box, canvas in zip(masks, boxes.tolist(), pixels, strict=True):
        left, top, right, bottom = box
        columns = slice(max(0, int(left)), min(size[1], int(right) + 1))
        rows = slice(max(0, int(top)), min(size[0], int(bottom) + 1))
        x = (torch.arange(columns.start, columns.stop, device=mask.device) + 0.5 - left) / max(right - left, 1e-6)
        y = (torch.arange(rows.start, rows.stop, device=mask.device) + 0.5 - top) / max(bottom - top, 1e-6)
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=2) * 2 - 1
        inside = F.grid_sample(mask.float()[None, None], grid[None], align_corners=False)
        canvas[rows, columns] = inside[0, 0] >= HALF
    return pixels


class Anchors(AnchorGenerator):
    """Anchors of 8 places a side on each map, by its stride."""

    def __init__(self, strides: Sequence[float]) -> None:
        super().__init__(tuple((int(ANCHOR * stride),) for stride in strides), (RATIOS,) * len(strides))
        self.strides = [[int(stride)] * 2 for stride in strides]

    def forward(self, image_list: Any, feature_maps: list[Tensor]) -> list[Tensor]:
        """The anchors of each image, all maps in a row."""
        self.set_cell_anchors(torch.float32, feature_maps[0].device)
        sizes: Any = [x.shape[-2:] for x in feature_maps]
        anchors = torch.cat(self.grid_anchors(sizes, self.strides))  # type: ignore[bad-argument-type]
        return [anchors] * len(image_list.image_sizes)


class AlignedPool(MultiScaleRoIAlign):
    """RoIAlign as in detectron2: shifted by half a place, with as many samples as a box has places.

    Args:
        strides: of the maps, of which the coarsest, made for proposals alone, is not read.
        side: of what is pooled.
    """

    def __init__(self, strides: Sequence[float], side: int) -> None:
        strides = strides[:-1]
        super().__init__([str(number) for number in range(len(strides))], side, sampling_ratio=0)
        self.levels = [round(math.log2(stride)) for stride in strides]

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: Any) -> Tensor:
        """(n, C, side, side) of all boxes of all images in a row, each from the map that fits its size."""
        number = torch.cat([torch.full_like(of_image[:, :1], i) for i, of_image in enumerate(boxes)])
        places = torch.cat(boxes)
        level = torch.floor(4 + torch.log2(box_area(places).sqrt() / USUAL) + 1e-6)
        level = level.clamp(self.levels[0], self.levels[-1])
        rois, first = torch.cat([number, places], dim=1), x[self.featmap_names[0]]
        pooled = first.new_zeros(len(rois), first.shape[1], *self.output_size)
        for name, here in zip(self.featmap_names, self.levels, strict=True):
            index = torch.where(level == here)[0]
            parts = roi_align(x[name], rois[index], self.output_size, 2.0**-here, self.sampling_ratio, aligned=True)
            pooled = pooled.index_copy(0, index, parts.to(pooled.dtype))
        return pooled


class ProposalHead(RPNHead):
    """torchvision's, which says float32."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, boxes = super().forward(x)
        return [value.float() for value in logits], [value.float() for value in boxes]


class BoxPredictor(FastRCNNPredictor):
    """torchvision's, which says float32, with detectron2's first weights."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(width, classes)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, boxes = super().forward(x)
        return logits.float(), boxes.float()


class MaskPredictor(MaskRCNNPredictor):
    """torchvision's, which says float32."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).float()


@dataclass(kw_only=True, slots=True)
class MaskRCNNConfig:
    """The heads of Mask R-CNN as in ViTDet, and how much of a picture they look at."""

    channels: int = 256
    """Of the pyramid and of the convolutions of all heads."""
    proposal_convolutions: int = 2
    """Layers that look for objects; FPN's 1."""
    box_convolutions: int = 4
    """Layers before the linear one that says classes and boxes; 0: two linear ones, as in FPN."""
    box_width: int = 1024
    """Of linear layers."""
    mask_convolutions: int = 4
    """Layers before masks."""
    anchors: int = 256
    """Of a picture that a step learns from, of all places and shapes."""
    proposals: int = 1000
    """Boxes of a picture that may hold an object."""
    boxes: int = 512
    """Of a picture's proposals that a step learns from."""
    least_score: float = 0.05
    """Less sure objects are not detected."""
    overlap: float = 0.5
    """Of two boxes of a class that share more of their area, the surer alone is detected."""
    detections: int = 100
    """Objects that are detected in a picture, at most."""

    def check(self, setting: str = "method.heads") -> None:
        """Refuse numbers that cannot be meant."""
        for name in ("proposal_convolutions", "box_convolutions", "mask_convolutions"):
            at_least(0, **{f"{setting}.{name}": getattr(self, name)})
        for name in ("channels", "box_width", "anchors", "proposals", "boxes", "detections"):
            at_least(1, **{f"{setting}.{name}": getattr(self, name)})
        within(0, 1, **{f"{setting}.least_score": self.least_score, f"{setting}.overlap": self.overlap})


class MaskRCNN(nn.Module):
    """torchvision's proposals and heads on maps of a pyramid.

    Args:
        strides: of the maps.
        classes: of objects.
        masks: whether objects have masks.
    """

    def __init__(self, strides: Sequence[float], classes: int, masks: bool, config: MaskRCNNConfig) -> None:
        super().__init__()
        channels, count, width = config.channels, config.proposals, config.box_width
        before, after = dict(training=2 * count, testing=count), dict(training=count, testing=count)
        head = ProposalHead(channels, len(RATIOS), config.proposal_convolutions)
        self.rpn = RegionProposalNetwork(Anchors(strides), head, 0.7, 0.3, config.anchors, 0.5, before, after, 0.7)
        mask: tuple[Any, ...] = (None, None, None)
        if masks:
            layers = MaskRCNNHeads(channels, [channels] * config.mask_convolutions, 1, LayerNorm2d)
            mask = (AlignedPool(strides, MASK_SIDE), layers, MaskPredictor(channels, channels, classes + 1))
        shape, linear = (channels, BOX_SIDE, BOX_SIDE), [width] if config.box_convolutions else [width] * 2
        self.roi_heads = RoIHeads(
            AlignedPool(strides, BOX_SIDE),
            FastRCNNConvFCHead(shape, [channels] * config.box_convolutions, linear, LayerNorm2d),
            BoxPredictor(width, classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=config.boxes,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=config.least_score,
            nms_thresh=config.overlap,
            detections_per_img=config.detections,
            mask_roi_pool=mask[0],
            mask_head=mask[1],
            mask_predictor=mask[2],
        )

    @torch.compiler.disable
    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        sizes: Sequence[tuple[int, int]],
        maps: list[Float[Tensor, "B _ _ _"]],
        targets: list[dict[str, Tensor]] | None,
    ) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        """Losses by name where there are targets, else the objects of each image. Not compiled: their number varies.

        Args:
            sizes: height and width of the pictures, which lie in the upper left of the images.
            targets: boxes, labels from 1 on, and masks of each image, as torchvision has them.
        """
        # torchvision's parts have losses in training mode alone, a task in any.
        self.rpn.training = self.roi_heads.training = targets is not None
        features = OrderedDict((str(number), x) for number, x in enumerate(maps))
        boxes, losses = self.rpn(ImageList(images, list(sizes)), features, targets)
        objects, more = self.roi_heads(features, boxes, list(sizes), targets)
        return losses | more, objects
