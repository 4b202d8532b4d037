"""Depth: an encoder with a head learns how far each pixel is. A Batch enters, a Step leaves."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mimkit.core.annotation import Annotation
from mimkit.core.batch import Batch, Step
from mimkit.core.errors import UserError, at_least
from mimkit.methods.dense import Dense, MapConfig
from mimkit.model.backbone import Backbone
from mimkit.model.depth import DepthHead, LinearDepth
from mimkit.model.norms import Norm
from mimkit.model.pyramid import LastMaps

TINY = 1e-12  # below which the root of a loss is flat: its slope at 0 is infinite


@dataclass(kw_only=True, slots=True)
class DepthConfig(MapConfig):
    """Each pixel gets a depth, by deconvolutions on all weights (Xie et al. 2023) or a linear head on frozen ones."""

    learns = "depth"

    depth_scale: float | None = None
    """Numbers in the files that are one meter: NYU's 1000, KITTI's 256; None: as the reader knows."""
    head: Literal["simmim", "linear"] = "simmim"
    """`simmim`: deconvolutions and a sigmoid; `linear`: one layer to bins of depth, as in DINOv2."""
    furthest: float = 10.0
    """Largest depth in meters: NYU's 10, KITTI's 80."""
    nearest: float = 0.001
    """Smallest depth in meters, of the linear head's bins."""
    channels: int = 32
    """Of the deconvolutions."""
    fine_channels: int = 128
    """Of the convolutions at full size."""
    norm: Norm = "batch"
    """Behind convolutions: `batch` as published, which needs many pictures a step, `group` or `layer`."""
    bins: int = 256
    """Of the linear head."""
    blocks: int = 1
    """Last blocks of a ViT that the linear head sees."""
    class_token: bool = True
    """The linear head sees a ViT's class token at every place."""
    mean_weight: float = 0.5
    """Weight of the squared mean of the log ratios beside their variance; DINOv2's 0.15."""
    silog: float = 1.0
    """Weight of the root of both; DINOv2's 10."""
    gradient: float = 0.0
    """Weight of the gradients of the log ratios, on four scales; DINOv2's 0.5."""

    @property
    def needs_whole_batch(self) -> bool:  # type: ignore[bad-override]
        """BatchNorm's statistics are of the pictures of a step."""
        return self.head == "simmim" and self.norm == "batch"

    def of_labels(self) -> dict[str, Any]:
        return {"labels": self.labels, "depth_scale": self.depth_scale}

    def build(self, encoder: Backbone) -> "Depth":
        self.check()
        if not 0 < self.nearest < self.furthest:
            raise UserError(
                f"method.nearest lies between 0 and method.furthest, got {self.nearest} and {self.furthest} meters"
            )
        at_least(1, **{"method.channels": self.channels, "method.fine_channels": self.fine_channels})
        at_least(2, **{"method.bins": self.bins})
        at_least(0, **{f"method.{name}": getattr(self, name) for name in ("mean_weight", "silog", "gradient")})
        return Depth(encoder, self)

    def example(self, count: int, size: tuple[int, int], device: torch.device | str) -> tuple[Annotation, ...]:
        column = torch.linspace(self.nearest, self.furthest, size[0], device=device)
        return tuple(Annotation(size=size, depth=column[:, None].expand(*size)) for _ in range(count))


class Depth(Dense):
    """Meters of every pixel, and a loss of their ratios."""

    def __init__(self, encoder: Backbone, config: DepthConfig) -> None:
        linear = config.head == "linear"
        pyramid = LastMaps(encoder, config.blocks, config.class_token) if linear else LastMaps(encoder)
        super().__init__(encoder, pyramid, config)
        self.config = config
        if linear:
            self.head: nn.Module = LinearDepth(pyramid.widths, config.bins, config.nearest, config.furthest)
        else:
            width, stride, channels = pyramid.widths[0], pyramid.strides[0], config.channels
            self.head = DepthHead(width, stride, channels, config.fine_channels, config.furthest, config.norm)

    def forward(self, batch: Batch, progress: float) -> Step:
        depth = torch.stack([target.depth for target in batch.targets if target.depth is not None])
        valid = torch.isfinite(depth) & (depth > 0)
        depth = torch.where(valid, depth, torch.ones_like(depth))
        predicted = self.head(self.maps(batch.images), depth.shape[1:])
        ratio = torch.where(valid, predicted.log() - depth.log(), torch.zeros_like(depth))
        loss = self.config.silog * silog_loss(ratio, valid, self.config.mean_weight)
        if self.config.gradient > 0:
            loss = loss + self.config.gradient * gradient_loss(ratio, valid)
        error = (torch.where(valid, predicted.detach() - depth, torch.zeros_like(depth)) / depth).abs()
        return Step(loss, {"abs_rel": error.sum() / valid.sum().clamp(min=1)})

    @torch.no_grad()
    def predict(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H W"]:
        """Meters of every pixel."""
        return self.head(self.maps(images), images.shape[2:])


def silog_loss(ratio: Float[Tensor, "B H W"], valid: Bool[Tensor, "B H W"], mean_weight: float) -> Float[Tensor, ""]:
    """The root of variance + weight x mean^2 of log ratios over all known pixels (Eigen et al. 2014); 0 of none.

    `ratio`: log of predicted to true depth, 0 where it is not known.
    """
    count = valid.sum().clamp(min=1)
    mean, square = ratio.sum() / count, ratio.square().sum() / count
    value = square - (1 - mean_weight) * mean.square()
    return torch.where(value > TINY, value.clamp(min=TINY).sqrt(), 0 * value)


def gradient_loss(ratio: Float[Tensor, "B H W"], valid: Bool[Tensor, "B H W"]) -> Float[Tensor, ""]:
    """Mean step of the log ratio between neighbors, down and across, at every 1st, 2nd, 4th and 8th pixel, summed."""
    loss = ratio.new_zeros(())
    for step in (1, 2, 4, 8):
        coarse, both = ratio[:, ::step, ::step], valid[:, ::step, ::step]
        for axis in (1, 2):
            pairs = both.narrow(axis, 1, both.shape[axis] - 1) & both.narrow(axis, 0, both.shape[axis] - 1)
            loss = loss + (coarse.diff(dim=axis).abs() * pairs).sum() / pairs.sum().clamp(min=1)
    return loss
