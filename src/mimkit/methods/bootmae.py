"""BootMAE: an MAE that also predicts a slow teacher's latents, by two decoders. A Batch enters, a Step leaves."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mimkit.core.batch import Batch, DatasetView, Step
from mimkit.core.errors import UserError, at_least
from mimkit.guidance.sampler import refuse_exploitation
from mimkit.masks import Mask, Masker, ToppedBlockMasker
from mimkit.methods.base import MaskedConfig, MaskedMethod
from mimkit.methods.losses import feature_spread, hidden_around
from mimkit.methods.momentum import Momentum
from mimkit.methods.targets.pixels import restored_channels, standardized_channels
from mimkit.model.latents import LatentTarget, LatentTargetConfig, standardized
from mimkit.model.patches import patchify, unpatchify
from mimkit.model.reader import Restorer
from mimkit.model.vit import Encoder


@dataclass(kw_only=True, slots=True)
class BootMAEConfig(MaskedConfig):
    """BootMAE (Dong et al. 2022, arXiv:2207.07116; LightDXY/BootMAE:models/modeling_pretrain_bootmae.py)."""

    against_collapse = ("momentum.first", "weight")

    masker: Masker = field(default_factory=ToppedBlockMasker)
    momentum: Momentum = field(default_factory=lambda: Momentum(first=0.999, last=0.99999, shape="linear", stretch=0.5))
    """How slowly the teacher follows."""
    width: int = 512
    """Of the decoder of pixels; that of latents is as wide as the encoder. Both have the encoder's number of heads."""
    depth: int = 2
    """Blocks of each decoder."""
    weight: float = 1.0
    """Of the loss of latents beside that of pixels."""
    ramp: float = 0.25
    """Share of training, at its start, in which this weight rises from 0; 0: it is there at once."""
    inside: bool = True
    """Patches count more the more of their neighbors are hidden: up to twice."""

    def build(self, encoder: Encoder) -> "BootMAE":
        self.momentum.check()
        at_least(1, **{"method.width": self.width, "method.depth": self.depth})
        at_least(0, **{"method.weight": self.weight})
        if not 0 <= self.ramp <= 1:
            raise UserError(f"method.ramp is a share of training between 0 and 1, got {self.ramp:g}")
        if self.width % 4 or self.width < self.heads(encoder):
            raise UserError(f"method.width {self.width} must be divisible by 4 and at least {self.heads(encoder)}")
        refuse_exploitation(self.masker, "BootMAE")
        return BootMAE(encoder, self)

    def heads(self, encoder: Encoder) -> int:
        """Attention heads of both decoders."""
        first: Any = encoder.timm.blocks[0]
        return first.attn.num_heads


class BootMAE(MaskedMethod):
    """One decoder reads the first block and restores pixels, one reads the last and predicts the teacher's latents.

    The teacher sees whole pictures. The encoder that leaves is the student's.
    """

    encoder: Encoder  # type: ignore[bad-override]

    def __init__(self, encoder: Encoder, config: BootMAEConfig) -> None:
        slow = LatentTarget(encoder, LatentTargetConfig(standardize="mean"))
        super().__init__(encoder, config.masker, average=slow.module)
        heads, numbers = config.heads(encoder), encoder.patch[0] * encoder.patch[1] * encoder.channels
        self.slow, self.config = slow, config
        self.pixels = Restorer(encoder, config.width, config.depth, heads, numbers)
        self.latents = Restorer(encoder, encoder.width, config.depth, heads, encoder.width)

    def setup(self, dataset: DatasetView, resumed: bool) -> None:
        if not resumed:
            self.slow.update(self.encoder, 0.0)  # released weights were loaded after the copy was made

    def predict(
        self, patches: Float[Tensor, "B N P"], mask: Mask
    ) -> tuple[Float[Tensor, "BK N P"], Float[Tensor, "BK N D"]]:
        """Pixels and latents of all patches of every view."""
        blocks = self.encoder.by_block(self.encoder.embed(patches, mask), mask)
        first, last = (torch.cat(tokens, dim=1) for tokens in (blocks[0], blocks[-1]))
        normed, bias = self.encoder.timm.norm(last), self.encoder.surplus(last, mask)
        prefix = blocks[0].prefix.shape[1]
        latents = type(blocks[0])(normed[:, :prefix], normed[:, prefix:])
        return self.pixels(latents, first, mask, bias), self.latents(latents, last, mask, bias)

    def forward(self, batch: Batch, progress: float) -> Step:
        patches, mask, logs = self.sample(batch, progress)
        pixels, latents = self.predict(patches, mask)
        valid = None if batch.valid is None else mask.repeat(patchify(batch.valid, self.encoder.patch))
        errors = (pixels.float() - mask.repeat(standardized_channels(patches, self.encoder.channels))).square()
        errors = errors.mean(dim=2) if valid is None else (errors * valid).sum(dim=2) / valid.sum(dim=2).clamp(min=1)
        target = self.slow(batch.images)
        far = (standardized(latents) - mask.repeat(target)).square().mean(dim=2)
        counted = mask.counted.float()
        weights, count = counted, counted.sum(dim=1).clamp(min=1e-6)
        if self.config.inside:
            weights = counted * (1 + hidden_around(counted, self.encoder.grid))
        terms = [((values * weights).sum(dim=1) / count).mean() for values in (errors, far)]
        logs |= {"pixels": terms[0].detach(), "latents": terms[1].detach()}
        logs["target_spread"] = feature_spread(target.flatten(0, 1))
        return Step(terms[0] + self.weight(batch, progress) * terms[1], logs)

    def weight(self, batch: Batch, progress: float) -> float | Float[Tensor, ""]:
        """Of the loss of latents at this moment."""
        moment, ramp = progress if batch.progress is None else batch.progress, self.config.ramp
        return self.config.weight * (torch.as_tensor(moment / ramp).clamp(max=1) if ramp else 1.0)

    def after_step(self, progress: float) -> None:
        super().after_step(progress)
        self.slow.update(self.encoder, self.config.momentum.at(progress))

    def reconstruct(self, batch: Batch, progress: float) -> tuple[Tensor, Mask]:
        """As MAE's: each channel of a patch borrows mean and variance of the true one."""
        patches, mask, _ = self.sample(batch, progress)
        prediction = self.predict(patches, mask)[0]
        restored = restored_channels(prediction, mask.repeat(patches), self.encoder.channels)
        return unpatchify(restored, self.encoder.patch, self.encoder.grid), mask
