"""A detector that mimkit trained, of torch, torchvision and timm alone: pictures enter, their objects leave.

from model import load
detector = load(".")            # the folder of this file
(objects,) = detector([picture])  # (C, H, W), uint8 or float from 0 to 1, of any size
names = [detector.categories[label] for label in objects["labels"]]
"""

import json
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork, box_area, roi_align

RATIOS = (0.5, 1.0, 2.0)  # height to width of anchors


def load(folder: str | Path = ".") -> "Detector":
    """The detector of a folder with config.json and model.safetensors, on the CPU, for predictions."""
    detector = Detector(json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")))
    detector.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return detector.eval().requires_grad_(False)


class Detector(nn.Module):
    """A timm backbone, a pyramid of maps, and torchvision's proposals and heads of Mask R-CNN."""

    mean: Tensor
    std: Tensor
    fill: Tensor

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config, self.size = config, config["size"]
        self.categories = ("__background__", *config["categories"])
        for name in ("mean", "std", "fill"):
            self.register_buffer(name, torch.tensor(config[name])[:, None, None], persistent=False)
        backbone, pyramid, heads = config["backbone"], config["pyramid"], config["heads"]
        self.backbone: Any = timm.create_model(backbone["name"], num_classes=0, **backbone["args"])
        channels, strides, classes = heads["channels"], pyramid["strides"], len(self.categories)
        self.pyramid = StagePyramid(pyramid, channels) if "widths" in pyramid else PlainPyramid(pyramid, channels)
        count = {"training": heads["proposals"], "testing": heads["proposals"]}
        proposal, sampled = RPNHead(channels, len(RATIOS), heads["proposal_convolutions"]), (heads["anchors"], 0.5)
        self.rpn = RegionProposalNetwork(Anchors(strides), proposal, 0.7, 0.3, *sampled, count, count, 0.7)
        linear = [heads["box_width"]] * (1 if heads["box_convolutions"] else 2)
        layers = [channels] * heads["box_convolutions"]
        box = FastRCNNConvFCHead((channels, 7, 7), layers, linear, LayerNorm2d)
        mask: list[Any] = [None, None, None]
        if config["masks"]:
            convolutions = MaskRCNNHeads(channels, [channels] * heads["mask_convolutions"], 1, LayerNorm2d)
            mask = [Pool(strides, 14), convolutions, MaskRCNNPredictor(channels, channels, classes)]
        tested = (heads["least_score"], heads["overlap"], heads["detections"])
        sampled = (0.5, 0.5, heads["boxes"], 0.25, None)
        predictor: Any = FastRCNNPredictor(linear[-1], classes)
        self.roi_heads = RoIHeads(Pool(strides, 7), box, predictor, *sampled, *tested, *mask)

    @torch.inference_mode()
    def forward(self, pictures: list[Tensor]) -> list[dict[str, Tensor]]:
        """Objects of each picture (C, H, W), uint8 or float from 0 to 1, the surest first, in its own pixels.

        boxes (n, 4): left, top, right, bottom; labels (n): from 1 on, see `categories`; scores (n): 0 to 1; and of
        detectors with masks, masks (n, 1, H, W): 0 to 1, an object's pixels are those from 0.5 on.
        """
        fitted = [self.fit(picture) for picture in pictures]
        images, sizes = torch.stack([image for image, _ in fitted]), [size for _, size in fitted]
        maps = OrderedDict((str(number), x) for number, x in enumerate(self.pyramid(self.backbone, images)))
        proposals, _ = self.rpn(ImageList(images, sizes), maps)
        objects, _ = self.roi_heads(maps, proposals, sizes)
        for picture, (height, width), entry in zip(pictures, sizes, objects, strict=True):
            scale = (picture.shape[2] / width, picture.shape[1] / height)
            entry["boxes"] = entry["boxes"] * entry["boxes"].new_tensor(scale * 2)
            if "masks" in entry:
                entry["masks"] = pasted(entry["masks"], entry["boxes"], picture.shape[1:])
        return objects

    def fit(self, picture: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """A normalized image with the picture at its upper left, and the height and width that this has there."""
        sides, size = picture.shape[1:], torch.tensor(self.size)
        zoom = min(self.size[0] / sides[0], self.size[1] / sides[1])
        height, width = (max(1, min(end, round(side * zoom))) for side, end in zip(sides, self.size, strict=True))
        whole = torch.tensor([round(end / zoom) for end in self.size])  # of the picture's pixels, that the image shows
        rows, columns = (torch.tensor(sides) * (size / whole)).round().int().clamp(min=1).tolist()
        levels = picture.cpu() if picture.dtype == torch.uint8 else picture.cpu() * 255
        levels = levels.round().to(torch.uint8) if self.config["bits"] == 8 else levels.float()
        levels = F.interpolate(levels[None], (rows, columns), mode="bicubic", antialias=True, align_corners=False)[0]
        image = self.fill.expand(-1, *self.size).clone()
        image[:, :rows, :columns] = (levels.float().clamp(0, 255).to(image.device) / 255 - self.mean) / self.std
        return image, (height, width)


class PlainPyramid(nn.Module):
    """Five maps of the last block of a ViT, whose other blocks may attend in windows."""

    def __init__(self, config: dict[str, Any], channels: int) -> None:
        super().__init__()
        self.window, self.everywhere, width = config["window"], config["global_blocks"], config["width"]
        once, twice = nn.ConvTranspose2d(width, width // 2, 2, 2), nn.ConvTranspose2d(width, width // 2, 2, 2)
        finest = [twice, LayerNorm2d(width // 2), nn.GELU(), nn.ConvTranspose2d(width // 2, width // 4, 2, 2)]
        levels = [(finest, width // 4), ([once], width // 2), ([], width), ([nn.MaxPool2d(2)], width)]
        self.levels = nn.ModuleList(nn.Sequential(*layers, *smooth(n, channels)) for layers, n in levels)

    def forward(self, vit: Any, images: Tensor) -> list[Tensor]:
        """Maps of images, the finest first."""
        rows, columns = (n // p for n, p in zip(images.shape[2:], vit.patch_embed.patch_size, strict=True))
        x, prefix = vit._pos_embed(vit.patch_embed(images)), vit.num_prefix_tokens
        x = vit.norm_pre(x if self.window is None else x[:, prefix:])
        for number, block in enumerate(vit.blocks):
            if self.window is None or number in self.everywhere:
                x = block(x)
            else:  # all but attention sees each token by itself, so that a block may see windows as pictures
                p = self.window
                inside = x.unflatten(1, (rows // p, p, columns // p, p)).transpose(2, 3)
                x = block(inside.flatten(3, 4).flatten(0, 2)).view(inside.shape).transpose(2, 3).flatten(1, 4)
        last = x[:, -rows * columns :].unflatten(1, (rows, columns)).movedim(3, 1)
        maps = [level(last) for level in self.levels]
        return [*maps, F.max_pool2d(maps[-1], 1, 2)]


def smooth(inputs: int, outputs: int) -> list[nn.Module]:
    """What ends each level of a plain pyramid."""
    last = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
    return [nn.Conv2d(inputs, outputs, 1, bias=False), LayerNorm2d(outputs), last, LayerNorm2d(outputs)]


class StagePyramid(nn.Module):
    """torchvision's feature pyramid on the stages of a Swin, each behind a norm, or of a ResNet."""

    def __init__(self, config: dict[str, Any], channels: int) -> None:
        super().__init__()
        self.stages, widths = config["stages"], config["widths"]
        self.norms = nn.ModuleList(LayerNorm2d(n) if config["norms"] else nn.Identity() for n in widths)
        self.network = FeaturePyramidNetwork(widths, channels)

    def forward(self, backbone: Any, images: Tensor) -> list[Tensor]:
        """Maps of images, the finest first."""
        stages = backbone.forward_intermediates(images, indices=self.stages, intermediates_only=True)
        stages = OrderedDict((str(i), norm(x)) for i, (norm, x) in enumerate(zip(self.norms, stages, strict=True)))
        maps = list(self.network(stages).values())
        return [*maps, F.max_pool2d(maps[-1], 1, 2)]


class Anchors(AnchorGenerator):
    """Anchors of 8 places a side on each map, by its stride, also where the size of a map is rounded up."""

    def __init__(self, strides: list[float]) -> None:
        super().__init__(tuple((int(8 * stride),) for stride in strides), (RATIOS,) * len(strides))
        self.steps: Any = [[int(stride)] * 2 for stride in strides]

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The anchors of each image, all maps in a row."""
        self.set_cell_anchors(torch.float32, feature_maps[0].device)
        sizes: Any = [x.shape[-2:] for x in feature_maps]
        return [torch.cat(self.grid_anchors(sizes, self.steps))] * len(image_list.image_sizes)


class Pool(nn.Module):
    """Aligned pooling of boxes, each from the map that fits its size; the coarsest map is for proposals alone."""

    def __init__(self, strides: list[float], side: int) -> None:
        super().__init__()
        self.levels, self.side = [round(math.log2(stride)) for stride in strides[:-1]], side

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: Any) -> Tensor:
        """(n, C, side, side) of all boxes of all images in a row."""
        number = torch.cat([torch.full_like(of_image[:, :1], i) for i, of_image in enumerate(boxes)])
        rois = torch.cat([number, torch.cat(boxes)], dim=1)
        level = torch.floor(4 + torch.log2(box_area(rois[:, 1:]).sqrt() / 224) + 1e-6)
        level = level.clamp(self.levels[0], self.levels[-1])
        pooled = x["0"].new_zeros(len(rois), x["0"].shape[1], self.side, self.side)
        for i, here in enumerate(self.levels):
            rows = torch.where(level == here)[0]
            pooled[rows] = roi_align(x[str(i)], rois[rows], self.side, 2.0**-here, aligned=True)
        return pooled


def pasted(masks: Tensor, boxes: Tensor, size: torch.Size) -> Tensor:
    """Masks (n, 1, m, m) over boxes as masks (n, 1, H, W) of a picture, read at the middles of its pixels."""
    canvas = masks.new_zeros(len(masks), 1, *size)
    for mask, (left, top, right, bottom), pixels in zip(masks, boxes.tolist(), canvas, strict=True):
        x0, y0, x1, y1 = (
            max(0, int(left)),
            max(0, int(top)),
            min(size[1], int(right) + 1),
            min(size[0], int(bottom) + 1),
        )
        x = (torch.arange(x0, x1, device=mask.device) + 0.5 - left) / max(right - left, 1e-6)
        y = (torch.arange(y0, y1, device=mask.device) + 0.5 - top) / max(bottom - top, 1e-6)
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=2) * 2 - 1
        pixels[:, y0:y1, x0:x1] = F.grid_sample(mask[None], grid[None], align_corners=False)[0]
    return canvas
