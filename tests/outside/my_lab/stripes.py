"""A masker, a method and two recipes from outside of mimkit: nothing enters, a Pretrain leaves."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mimkit.core.batch import Batch, Step
from mimkit.core.randomness import uniform
from mimkit.masks import Mask, Masker
from mimkit.methods.mae import MAE, MAEConfig
from mimkit.model.patches import patchify
from mimkit.model.vit import Encoder
from mimkit.recipes.small import mae_mini_28
from mimkit.train.prepare import Pretrain


@dataclass(frozen=True, kw_only=True)
class StripeMasker(Masker):
    """Every second stripe of columns is hidden; a random draw decides which half of them."""

    width: int = 2
    """Columns of patches in a stripe."""

    def __call__(self, signal: Tensor, rng_keys: Tensor, progress: float, grid: tuple[int, int]) -> Mask:
        column = torch.arange(signal.shape[1], device=signal.device) % grid[1]
        odd = (column // self.width) % 2
        flipped = (uniform(rng_keys, 1) < 0.5).long()
        return Mask.from_scores((odd ^ flipped).float(), hide=int(odd.sum()))


class Absolute(MAE):
    """MAE with the absolute error instead of the squared one."""

    def forward(self, batch: Batch, progress: float) -> Step:
        patches = patchify(batch.images, self.encoder.patch)
        mask, logs = self.mask_sampler(self.encoder, patches, batch, progress)
        prediction = self.predict(patches, mask)
        error = (prediction - self.target(patches)).abs().mean(dim=-1)
        return Step(self.scale * error[mask.hidden].mean(), logs)


@dataclass(kw_only=True, slots=True)
class AbsoluteConfig(MAEConfig):
    """A method of our own."""

    scale: float = 1.0
    """Weight of the loss."""

    def build(self, encoder: Encoder) -> Absolute:
        """The task."""
        outputs = encoder.patch[0] * encoder.patch[1] * encoder.channels
        task = Absolute(encoder, self.decoder.build(encoder, outputs), self.masker, self.target)
        task.scale = self.scale
        return task


def stripes() -> Pretrain:
    """MAE that hides stripes, 14 epochs with 128 pictures a step."""
    run = mae_mini_28()
    run.method.masker = StripeMasker()
    return run


def absolute() -> Pretrain:
    """Our own method with our own masks, 14 epochs with 128 pictures a step."""
    run = stripes()
    run.method = AbsoluteConfig(masker=run.method.masker, decoder=run.method.decoder)
    return run


def broken() -> Pretrain:
    """A recipe with a mistake in it."""
    return 1 / 0


def unfinished() -> str:
    """A function that is no recipe."""
    return "nothing"
