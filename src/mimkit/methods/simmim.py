"""SimMIM: a token in place of hidden patches, a full sequence, a light head. A Batch enters, a Step leaves."""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mimkit.core.batch import Batch, DatasetView, Step
from mimkit.core.errors import UserError
from mimkit.guidance.sampler import refuse_exploitation, refuse_reading_maskers
from mimkit.masks import Mask, Masker, SimMIMMasker
from mimkit.methods.base import MaskedConfig, MaskedMethod
from mimkit.methods.channels import channel_losses, logged
from mimkit.methods.losses import DISTANCES, mean_where, pixel_errors
from mimkit.methods.targets.base import PictureTarget, Targets
from mimkit.methods.targets.color import RawPixels
from mimkit.model.backbone import Backbone
from mimkit.model.heads import HeadName, build_head


@dataclass(kw_only=True, slots=True)
class SimMIMConfig(MaskedConfig):
    """SimMIM (Xie et al. 2022, arXiv:2111.09886), on a plain ViT, a Swin or a SwinV2."""

    windows = beits = True  # encoders that leave no patch out will do

    masker: Masker = field(default_factory=SimMIMMasker)
    target: PictureTarget = field(default_factory=RawPixels)
    head: HeadName = "linear"
    """`linear`, or what the paper compares it with: `mlp`, `inverse_swin_t`, `inverse_swin_b`."""
    loss: Literal["l1", "l2", "smooth_l1", "cross_entropy"] | None = None
    """By default `l1`, or `cross_entropy` for a target of classes, which admits no other."""
    everywhere: bool = False
    """Count visible pixels too, not the hidden ones alone."""
    weigh: Literal["picture", "token"] = "picture"
    """Where a masker hides unequally many patches: each picture weighs alike in the loss, or each token (BEiT)."""

    def build(self, encoder: Backbone) -> "SimMIM":
        refuse_reading_maskers(self.masker, encoder)
        refuse_exploitation(self.masker, "SimMIM")
        target = self.target.open(encoder)
        loss = self.loss or ("cross_entropy" if target.classes else "l1")
        if (loss == "cross_entropy") != bool(target.classes):
            fit = "cross_entropy" if target.classes else "l1, l2 or smooth_l1"
            raise UserError(f"method.loss {loss} does not fit {type(self.target).__name__}: use {fit}")
        return SimMIM(encoder, self, target, loss)


class SimMIM(MaskedMethod):
    """The encoder sees the full sequence with a learned token where patches are hidden; loss on hidden pixels."""

    def __init__(self, encoder: Backbone, config: SimMIMConfig, target: PictureTarget, loss: str) -> None:
        super().__init__(encoder, config.masker)
        self.loss, self.everywhere, self.weigh = loss, config.everywhere, config.weigh
        self.target = Targets(target, encoder)
        # One axis: not decayed, as in the released code (models/simmim.py, optimizer.py).
        self.mask_token = nn.Parameter(torch.zeros(encoder.embed_width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.head = build_head(config.head, encoder, target.outputs(encoder.channels), target.cell)

    def setup(self, dataset: DatasetView, resumed: bool) -> None:
        super().setup(dataset, resumed)
        self.target.setup(dataset, resumed)

    def predict(self, patches: Float[Tensor, "B N P"], mask: Mask) -> Float[Tensor, "BK O h w"]:
        """Predictions for the whole picture of every view. Nothing of hidden and thrown patches gets in."""
        unseen = mask.hidden if mask.decoded is None else mask.hidden | mask.thrown
        tokens = self.encoder.fill(mask.repeat(patches), unseen, self.mask_token)
        return self.head(self.encoder.encode(tokens).patches)

    def forward(self, batch: Batch, progress: float) -> Step:
        patches, mask, logs = self.sample(batch, progress)
        target = mask.repeat(self.target(batch.images))
        prediction = self.predict(patches, mask)
        errors = pixel_errors(prediction, target, self.loss)
        # The mean over the pixels of the whole batch, and with SimMIM's 1e-5 in the denominator.
        where = self.where(mask)
        if batch.valid is not None:
            where = where & mask.repeat(self.measured(batch.valid))
        loss = mean_where(errors, where, per_picture=mask.alike and self.weigh == "picture", epsilon=1e-5)
        if isinstance(self.target.target, RawPixels) and logged(self.encoder.channels):
            distances = DISTANCES[self.loss](prediction.detach().float() - target)
            logs |= channel_losses(distances.flatten(2).mT, where)
        return Step(loss, logs)

    def measured(self, valid: Bool[Tensor, "B C H W"]) -> Bool[Tensor, "B T"]:
        """Which squares of the target have data; of several pixels all must, and their neighbors, that edges reach."""
        holes = (~valid).any(dim=1, keepdim=True).float()
        if self.target.cell > 1:
            holes = F.max_pool2d(F.max_pool2d(holes, 3, stride=1, padding=1), self.target.cell)
        return (holes == 0).flatten(1)

    def where(self, mask: Mask) -> Bool[Tensor, "BK T"]:
        """Which squares of the target count: those of whose pixels all are hidden, or all but thrown ones."""
        counted = ~mask.thrown if self.everywhere else mask.hidden
        hidden = counted.unflatten(1, self.encoder.grid)
        for axis, side in enumerate(self.encoder.patch, start=1):
            hidden = hidden.repeat_interleave(side, dim=axis)
        if self.target.cell > 1:
            hidden = F.max_pool2d((~hidden).float(), self.target.cell) == 0
        return hidden.flatten(1)

    def reconstruct(self, batch: Batch, progress: float) -> tuple[Tensor, Mask] | None:
        """Pictures of what it learned (BK, C, H, W) in the input's normalization, and the mask.

        With a `window`, mean and variance are those of the true picture; None of tokens that cannot be drawn.
        """
        patches, mask, _ = self.sample(batch, progress)
        drawn = self.target.restore(self.predict(patches, mask), mask.repeat(batch.images))
        return None if drawn is None else (drawn, mask)
