"""MoCo v3: each view predicts the slow embedding of the other. A Batch enters, a Step leaves."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from mimkit.core.batch import Batch, DatasetView, Step
from mimkit.core.errors import at_least
from mimkit.methods.base import Method, MethodConfig
from mimkit.methods.losses import in_batch
from mimkit.methods.momentum import Momentum
from mimkit.methods.simclr import check_temperature, describe, picture_numbers, second_view
from mimkit.model.backbone import Backbone
from mimkit.model.convolutional import ConvolutionalEncoder
from mimkit.model.projector import Embedder, Pool, SlowCopy, check_momentum, mlp, synchronized
from mimkit.model.vit import Encoder


@dataclass(kw_only=True, slots=True)
class MoCoV3Config(MethodConfig):
    """MoCo v3 (Chen, Xie, He 2021, arXiv:2104.02057; facebookresearch/moco-v3:moco/builder.py, vits.py).

    The other view is the first of `images.other_views`. Under a ViT or Swin the projector has three layers and both
    heads end in BatchNorm; under a ResNet it has two, and the predictor ends without. BatchNorm is over all processes.
    """

    windows = convolutions = needs_whole_batch = True
    against_collapse = ("temperature", "momentum")

    temperature: float = 0.2
    """Cosines are divided by it before the softmax; ResNets have 1.0."""
    momentum: float = 0.99
    """Share of the slow encoder that stays in the first step; it rises to 1 in half a cosine."""
    hidden: int = 4096
    """Width of the hidden layers of projector and predictor."""
    outputs: int = 256
    """Numbers of a point that is compared."""
    pool: Pool | None = None
    """What of the encoder is projected: `class` token, or `mean` of the patches; by default the class token where there
    is one."""
    freeze_patches: bool = True
    """Leave the patch embedding of a ViT or Swin as it starts, which keeps the training stable."""

    def build(self, encoder: Backbone) -> "MoCoV3":
        check_temperature(self.temperature)
        check_momentum(self.momentum)
        at_least(1, **{"method.hidden": self.hidden, "method.outputs": self.outputs})
        convolutional = isinstance(encoder, ConvolutionalEncoder)
        if isinstance(encoder, Encoder):
            rescale(encoder)
        if self.freeze_patches and not convolutional:
            encoder.timm.patch_embed.proj.requires_grad_(False)
        synchronized(encoder)
        projector = [encoder.width, *[self.hidden] * (1 if convolutional else 2), self.outputs]
        predictor = mlp([self.outputs, self.hidden, self.outputs], last="none" if convolutional else "plain")
        return MoCoV3(Embedder(encoder, self.pool, mlp(projector, last="plain")), predictor, self)


class MoCoV3(Method):
    """Queries go through encoder, projector and predictor, keys through a slow copy of the first two; no queue.

    The copy moves in `after_step`, before the next keys are computed.
    """

    def __init__(self, embedder: Embedder, predictor: nn.Module, config: MoCoV3Config) -> None:
        super().__init__()
        self.embedder, self.predictor, self.slow = embedder, predictor, SlowCopy(embedder)
        self.temperature, self.momentum = config.temperature, config.momentum

    @property
    def encoder(self) -> Backbone:  # type: ignore[override]
        """The encoder that is trained, inside the embedder."""
        return self.embedder.encoder

    def setup(self, dataset: DatasetView, resumed: bool) -> None:
        if not resumed:
            self.slow.update(self.embedder, 0.0)  # released weights were loaded after the copy was made

    def forward(self, batch: Batch, progress: float) -> Step:
        views = batch.images, second_view(batch)
        features, momentum_keys = [self.embedder.features(view) for view in views], [self.slow(view) for view in views]
        queries = [self.predictor(self.embedder.projector(feature)) for feature in features]
        index = picture_numbers(batch)
        first = in_batch(queries[0], momentum_keys[1], self.temperature, index)
        second = in_batch(queries[1], momentum_keys[0], self.temperature, index)
        return Step(first.loss + second.loss, describe(first, features[0]))

    def after_step(self, progress: float) -> None:
        self.slow.update(self.embedder, Momentum(first=self.momentum).at(progress))


@torch.no_grad()
def rescale(encoder: Encoder) -> None:
    """From MAE's initialization to MoCo v3's: query, key and value each their own matrix, class token nearly zero.

    Xavier's bound of three matrices is the root of 2 times that of one fused; the patch embedding's is the same.
    """
    for block in encoder.timm.blocks:
        block.attn.qkv.weight.mul_(math.sqrt(2))
    if encoder.timm.cls_token is not None:
        encoder.timm.cls_token.mul_(1e-6 / 0.02)
