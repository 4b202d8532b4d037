"""SimCLR: two views of each picture shall find each other among those of all others. A Batch enters, a Step leaves."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mimkit.core.batch import Batch, Step
from mimkit.core.errors import UserError, at_least
from mimkit.methods.base import Method, MethodConfig
from mimkit.methods.losses import Contrast, feature_spread, nt_xent
from mimkit.model.backbone import Backbone
from mimkit.model.projector import Embedder, Pool, mlp, synchronized


@dataclass(kw_only=True, slots=True)
class SimCLRConfig(MethodConfig):
    """SimCLR (Chen et al. 2020, arXiv:2002.05709; v2 arXiv:2006.10029; google-research/simclr).

    The other view is the first of `images.other_views`. BatchNorm, of a ResNet too, is over all processes.
    """

    windows = convolutions = needs_whole_batch = True
    against_collapse = ("temperature",)

    temperature: float = 0.1
    """Cosines are divided by it before the softmax; the paper has 0.1, and 0.5 for CIFAR-10."""
    layers: int = 2
    """Of the projector, each with BatchNorm: 2 in v1, 3 in v2."""
    outputs: int = 128
    """Numbers of a point that is compared."""
    pool: Pool | None = None
    """What of the encoder is projected: `class` token, or `mean` of the patches; by default the class token where there
    is one."""
    scale: float = 1.0
    """1: the paper's mean over all views; 2: the released code's sum of two means."""

    def build(self, encoder: Backbone) -> "SimCLR":
        check_temperature(self.temperature)
        at_least(1, **{"method.layers": self.layers, "method.outputs": self.outputs})
        widths = [encoder.width] * self.layers + [self.outputs]
        synchronized(encoder)
        return SimCLR(Embedder(encoder, self.pool, mlp(widths, last="scale")), self.temperature, self.scale)


class SimCLR(Method):
    """Both views go through encoder and projector as one batch; the encoder leaves without the projector."""

    def __init__(self, embedder: Embedder, temperature: float, scale: float) -> None:
        super().__init__()
        self.embedder, self.temperature, self.scale = embedder, temperature, scale

    @property
    def encoder(self) -> Backbone:  # type: ignore[override]
        """The encoder inside the embedder."""
        return self.embedder.encoder

    def forward(self, batch: Batch, progress: float) -> Step:
        features = self.embedder.features(torch.cat([batch.images, second_view(batch)]))
        first, second = self.embedder.projector(features).chunk(2)
        contrast = nt_xent(first, second, self.temperature, self.scale, picture_numbers(batch))
        return Step(contrast.loss, describe(contrast, features))


def check_temperature(temperature: float) -> None:
    """Refuse what cosines cannot be divided by."""
    if not temperature > 0:
        raise UserError(f"method.temperature must be above 0, got {temperature:g}; 0.1 to 0.5 is usual")


def second_view(batch: Batch) -> Float[Tensor, "B C h w"]:
    """The second view of each picture.

    Raises:
        UserError: the run makes one view alone.
    """
    if not batch.other_views:
        raise UserError(
            "a contrastive method compares two views of each picture and this run makes one: give images.other_views "
            "a view in the recipe, as those of mimkit.recipes.contrastive do"
        )
    return batch.other_views[0]


def picture_numbers(batch: Batch) -> Int64[Tensor, " B"]:
    """`Batch.index` beside the images: by it a picture that a batch has twice is no negative of itself."""
    return batch.index.to(batch.images.device, non_blocking=True)


def describe(contrast: Contrast, features: Float[Tensor, "B D"]) -> dict[str, Tensor]:
    """What to log: mean cosines with the own other view and with all others, and `spread`, which is 0 at collapse.

    `features` are those of the encoder: BatchNorm at the end of a projector would hide that all are nearly one.
    """
    return {"positive": contrast.positive, "negative": contrast.negative, "spread": feature_spread(features)}
