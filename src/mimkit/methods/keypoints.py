"""Keypoints: an encoder with a head learns where the joints of one person are. A Batch enters, a Step leaves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mimkit.core.annotation import Annotation
from mimkit.core.batch import Batch, Step
from mimkit.core.errors import UserError, at_least
from mimkit.methods.dense import Dense, DenseConfig
from mimkit.model.backbone import Backbone
from mimkit.model.heatmaps import Decoding, HeatmapHead, decode, encode
from mimkit.model.norms import Norm
from mimkit.model.pyramid import LastMaps

NEAR = 0.05  # of the longer side of an image: what counts as right while training


@dataclass(kw_only=True, slots=True)
class KeypointsConfig(DenseConfig):
    """Joints get heat maps, in images of one person each (Xu et al. 2022, ViTPose)."""

    learns = "keypoints"

    joints: int = 0
    """Of a person; 'mimkit evaluate keypoints' counts them itself."""
    head: Literal["classic", "simple"] = "classic"
    """`classic`: deconvolutions to a stride of 4; `simple`: the map is blended to it, before one layer."""
    channels: int = 256
    """Of the deconvolutions."""
    norm: Norm = "batch"
    """Behind deconvolutions: `batch` as published, which needs many pictures a step, `group` or `layer`."""
    test_flip: bool = False
    """At the test, the mean of heat maps over the picture and its mirror."""
    sigma: float = 2.0
    """Of the Gaussian around a joint, in places of a heat map."""
    decoding: Decoding = "dark"
    """How the highest place is refined: `dark`, by a Gaussian, or `quarter`, a quarter of a place."""

    @property
    def needs_whole_batch(self) -> bool:  # type: ignore[bad-override]
        """BatchNorm's statistics are of the pictures of a step."""
        return self.head == "classic" and self.norm == "batch"

    def build(self, encoder: Backbone) -> "Keypoints":
        self.check()
        at_least(1, **{"method.joints": self.joints, "method.channels": self.channels})
        if not self.sigma > 0:
            raise UserError(f"method.sigma must be above 0, got {self.sigma}; it is 2 as a rule")
        return Keypoints(encoder, self)

    def example(self, count: int, size: tuple[int, int], device: torch.device | str) -> tuple[Annotation, ...]:
        share = torch.linspace(0.1, 0.9, self.joints, device=device)
        joints = torch.stack([share * size[1], share * size[0], torch.full_like(share, 2)], dim=1)
        return tuple(Annotation(size=size, keypoints=joints[None]) for _ in range(count))


class Keypoints(Dense):
    """Heat maps of joints, and their squared distance to Gaussians."""

    def __init__(self, encoder: Backbone, config: KeypointsConfig) -> None:
        super().__init__(encoder, LastMaps(encoder), config)
        width, stride = self.pyramid.widths[0], self.pyramid.strides[0]
        channels = config.channels if config.head == "classic" else 0
        self.head, self.config = HeatmapHead(width, stride, config.joints, channels, config.norm), config

    def heatmaps(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B J h w"]:
        """A heat map of each joint."""
        return self.head(self.maps(images)[0])

    def forward(self, batch: Batch, progress: float) -> Step:
        keypoints = torch.cat([target.keypoints for target in batch.targets if target.keypoints is not None])
        size, heatmaps = batch.images.shape[2:], self.heatmaps(batch.images)
        truth, weights = encode(keypoints, size, heatmaps.shape[2:], self.config.sigma)
        loss = ((heatmaps - truth).square() * weights[..., None, None]).mean()
        places = decode(heatmaps.detach(), size, "quarter")
        near = torch.linalg.vector_norm(places[..., :2] - keypoints[..., :2], dim=2) < NEAR * max(size)
        return Step(loss, {"near": (near * weights).sum() / weights.sum().clamp(min=1)})

    @torch.no_grad()
    def predict(
        self, images: Float[Tensor, "B C H W"], mirrored: Sequence[int] | None = None
    ) -> Float[Tensor, "B J 3"]:
        """Column and row in pixels and score of each joint.

        `mirrored`: which joint each becomes when the image is mirrored, to take the mean of both.
        """
        heatmaps = self.heatmaps(images)
        if mirrored is not None:
            heatmaps = (heatmaps + self.heatmaps(images.flip(3)).flip(3)[:, list(mirrored)]) / 2
        return decode(heatmaps, images.shape[2:], self.config.decoding)
