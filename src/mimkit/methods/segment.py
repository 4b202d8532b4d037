"""Segmentation: an encoder with a head learns the class of each pixel. A Batch enters, a Step leaves."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mimkit.core.annotation import VOID, Annotation
from mimkit.core.batch import Batch, Step
from mimkit.core.errors import at_least, within
from mimkit.methods.dense import Dense, MapConfig
from mimkit.model.backbone import Backbone
from mimkit.model.dense import FCNHead, LinearHead, UperNet, resized
from mimkit.model.norms import Norm
from mimkit.model.pyramid import LastMaps, Pyramid, StagePyramid, TappedPyramid
from mimkit.model.vit import Encoder


@dataclass(kw_only=True, slots=True)
class SegmentConfig(MapConfig):
    """Each pixel gets a class, by UperNet on all weights (He et al. 2022, MAE) or a linear head on frozen ones."""

    learns = "segment"

    classes: int = 0
    """Kinds of pixels; 'mimkit evaluate segment' counts them itself."""
    void: int | None = None
    """A class in the files that means none, as the 0 of ADE20K; 255 always does."""
    head: Literal["upernet", "linear"] = "upernet"
    """`upernet`: four maps, pooled and fused; `linear`: a BatchNorm and one layer on the last map, as in DINOv2."""
    channels: int = 512
    """Of UperNet; MAE-B has 768."""
    auxiliary: float = 0.4
    """Weight of the loss of a small second head on UperNet's third map; 0: there is none."""
    auxiliary_channels: int = 256
    """Of the second head."""
    norm: Norm = "group"
    """Of UperNet: `group`, `layer`, or `batch` as published, which needs many pictures a step."""
    dropout: float = 0.1
    """Share of UperNet's channels left out before the last layer."""
    blocks: int = 1
    """Last blocks of a ViT that the linear head sees."""
    window: int | None = None
    """Side in patches of the windows in which three of four blocks of a ViT attend; None: all attend everywhere."""

    @property
    def needs_whole_batch(self) -> bool:  # type: ignore[bad-override]
        """BatchNorm's statistics are of the pictures of a step."""
        return self.head == "linear" or self.norm == "batch"

    def build(self, encoder: Backbone) -> "Segment":
        self.check()
        at_least(2, **{"method.classes": self.classes})
        at_least(1, **{"method.channels": self.channels, "method.auxiliary_channels": self.auxiliary_channels})
        at_least(0, **{"method.auxiliary": self.auxiliary})
        within(0, 0.99, **{"method.dropout": self.dropout})
        return Segment(encoder, self)

    def of_labels(self) -> dict[str, Any]:
        return {"labels": self.labels, "void": self.void}

    def pyramid(self, encoder: Backbone) -> Pyramid:
        """The maps that the head wants of this encoder."""
        if self.head == "linear":
            return LastMaps(encoder, self.blocks)
        return TappedPyramid(encoder, self.norm, self.window) if isinstance(encoder, Encoder) else StagePyramid(encoder)

    def example(self, count: int, size: tuple[int, int], device: torch.device | str) -> tuple[Annotation, ...]:
        rows = torch.arange(size[0], device=device) * self.classes // size[0]
        segments = rows[:, None].expand(*size).to(torch.int16)
        return tuple(Annotation(size=size, segments=segments) for _ in range(count))


class Segment(Dense):
    """Logits of every pixel, and cross-entropy with its class."""

    def __init__(self, encoder: Backbone, config: SegmentConfig) -> None:
        super().__init__(encoder, config.pyramid(encoder), config)
        widths = self.pyramid.widths
        self.second: nn.Module | None = None
        if config.head == "linear":
            self.head: nn.Module = LinearHead(widths, config.classes)
        else:
            self.head = UperNet(widths, config.classes, config.channels, config.norm, config.dropout)
            if config.auxiliary > 0:
                channels = config.auxiliary_channels
                self.second = FCNHead(widths[2], config.classes, channels, config.norm, config.dropout)
        self.weight = config.auxiliary

    def forward(self, batch: Batch, progress: float) -> Step:
        classes = torch.stack([target.segments for target in batch.targets if target.segments is not None]).long()
        maps = self.maps(batch.images)
        logits = resized(self.head(maps).float(), classes.shape[1:])
        loss, logs = class_loss(logits, classes), {"pixel_accuracy": pixel_accuracy(logits.detach(), classes)}
        if self.second is not None:
            second = class_loss(resized(self.second(maps[2]).float(), classes.shape[1:]), classes)
            loss, logs = loss + self.weight * second, logs | {"auxiliary_loss": second.detach()}
        return Step(loss, logs)

    @torch.no_grad()
    def predict(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """Logits of every pixel."""
        return resized(self.head(self.maps(images)).float(), images.shape[2:])


def class_loss(logits: Float[Tensor, "B K H W"], classes: Int64[Tensor, "B H W"]) -> Float[Tensor, ""]:
    """Mean cross-entropy over the pixels that have a class; 0, with gradients of 0, where none has."""
    total = F.cross_entropy(logits, classes, ignore_index=VOID, reduction="sum")
    return total / (classes != VOID).sum().clamp(min=1)


def pixel_accuracy(logits: Float[Tensor, "B K H W"], classes: Int64[Tensor, "B H W"]) -> Float[Tensor, ""]:
    """Share of the pixels with a class whose greatest logit is that of it."""
    right = (logits.argmax(dim=1) == classes).sum()
    return right / (classes != VOID).sum().clamp(min=1)
