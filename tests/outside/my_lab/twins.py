"""A contrastive method from outside of mimkit, whole and broken: nothing enters, a Pretrain leaves."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn

from mimkit.core.batch import Batch, Step
from mimkit.data.views import RandomResizedCrop
from mimkit.methods.base import Method, MethodConfig
from mimkit.methods.losses import in_batch
from mimkit.methods.simclr import second_view
from mimkit.model.build import EncoderConfig
from mimkit.model.projector import Embedder, mlp
from mimkit.model.vit import Encoder
from mimkit.recipes.contrastive import moco_v3_mini_32
from mimkit.train.prepare import Images, Pretrain


class Twins(Method):
    """MoCo v3 without a slow copy: both views go through one network and a predictor.

    Broken it only pulls twins together, with gradients on both sides and nothing that keeps pictures apart, so that
    one point for all pictures is perfect.
    """

    def __init__(self, embedder: Embedder, predictor: nn.Module, broken: bool) -> None:
        super().__init__()
        self.embedder, self.predictor, self.broken = embedder, predictor, broken

    @property
    def encoder(self) -> Encoder:
        """The encoder inside the embedder."""
        return self.embedder.encoder

    def forward(self, batch: Batch, progress: float) -> Step:
        one, two = (self.embedder(view) for view in (batch.images, second_view(batch)))
        if self.broken:
            return Step(2 * F.mse_loss(self.predictor(one), two))
        return Step(in_batch(self.predictor(one), two, 0.2).loss + in_batch(self.predictor(two), one, 0.2).loss)


@dataclass(kw_only=True, slots=True)
class TwinsConfig(MethodConfig):
    """A method of our own."""

    needs_whole_batch = True

    broken: bool = False
    """No stopped gradient and no negatives."""

    def build(self, encoder: Encoder) -> Twins:
        """The task."""
        heads = mlp([encoder.width, 32, 16], norm=False), mlp([16, 32, 16], norm=False)
        return Twins(Embedder(encoder, None, heads[0]), heads[1], self.broken)


def twins() -> Pretrain:
    """Both views of small pictures, with a rate at which a collapse takes a few dozen steps."""
    run = moco_v3_mini_32()
    run.encoder = EncoderConfig(name="vit_tiny_patch16_224", patch=4, width=32, depth=2, heads=2)
    view = RandomResizedCrop(scale=(0.4, 1.0))
    run.method, run.images = TwinsConfig(), Images(size=12, view=view, other_views=(view,))
    run.batch_size, run.epochs, run.optimizer.base_lr = 8, 6, 0.1
    return run
