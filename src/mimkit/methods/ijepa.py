"""I-JEPA: from a context, latents of blocks of hidden patches are predicted. A Batch enters, a Step leaves."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.core.batch import Batch, DatasetView, Step
from mimkit.core.errors import UserError
from mimkit.guidance.sampler import refuse_exploitation
from mimkit.masks import Mask, Masker, MultiBlockMasker
from mimkit.methods.base import MaskedConfig, MaskedMethod
from mimkit.methods.losses import feature_spread, mean_where
from mimkit.methods.momentum import Momentum
from mimkit.model.latents import LatentTarget, LatentTargetConfig
from mimkit.model.predictor import Predictor, PredictorConfig
from mimkit.model.projector import small_normal
from mimkit.model.vit import Encoder


@dataclass(kw_only=True, slots=True)
class IJEPAConfig(MaskedConfig):
    """I-JEPA (Assran et al. 2023, arXiv:2301.08243; facebookresearch/ijepa:src/train.py), for ViTs."""

    against_collapse = ("momentum.first",)

    masker: Masker = field(default_factory=MultiBlockMasker)
    """Under one that asks for no blocks, all hidden patches are predicted as one block."""
    target: LatentTargetConfig = field(default_factory=lambda: LatentTargetConfig(normed=True, standardize="mean"))
    """What is predicted: by default the teacher's tokens behind its norm, standardized."""
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    momentum: Momentum = field(default_factory=lambda: Momentum(shape="linear"))
    """How slowly the teacher follows: by default from 0.996 to 1 in a straight line."""
    beta: float = 1.0
    """Error at which a square, divided by twice this number, turns into a straight line."""

    def build(self, encoder: Encoder) -> "IJEPA":
        self.momentum.check()
        if not self.beta > 0:
            raise UserError(f"method.beta must be above 0, got {self.beta:g}; I-JEPA has 1")
        refuse_exploitation(self.masker, "I-JEPA")
        # Linear layers and the patch embedding start Normal(0, 0.02), as in the authors' helper.py.
        encoder.timm.apply(small_normal)
        nn.init.trunc_normal_(encoder.timm.patch_embed.proj.weight, std=0.02)
        return IJEPA(encoder, self)


class IJEPA(MaskedMethod):
    """The encoder sees the context alone, the predictor asks it for each block by itself; the teacher, a slow copy of
    the encoder, sees whole pictures. The encoder that leaves is the teacher's."""

    student: Encoder  # type: ignore[bad-override]

    def __init__(self, encoder: Encoder, config: IJEPAConfig) -> None:
        slow = LatentTarget(encoder, config.target)
        super().__init__(encoder, config.masker, average=slow.module)
        self.slow, self.config = slow, config
        self.predictor: Predictor = config.predictor.build(encoder)

    @property
    def encoder(self) -> Encoder:  # type: ignore[override]
        """The teacher's, which the authors evaluate."""
        return self.slow.module  # type: ignore[bad-return]

    def setup(self, dataset: DatasetView, resumed: bool) -> None:
        if not resumed:
            self.slow.update(self.student, 0.0)  # released weights were loaded after the copy was made

    def predict(self, patches: Float[Tensor, "B N P"], mask: Mask) -> Float[Tensor, "BK M T D"]:
        """Predictions at the places of each block (`mask.blocks`). Nothing of hidden patches gets in."""
        return self.predictor(self.student.encode(self.student.embed(patches, mask), mask), mask).float()

    def forward(self, batch: Batch, progress: float) -> Step:
        patches, mask, logs = self.sample(batch, progress)
        target = self.slow(batch.images)
        targets, weights = mask.at_blocks(mask.repeat(target)), mask.at_blocks(mask.counted)
        errors = F.smooth_l1_loss(self.predict(patches, mask), targets, beta=self.config.beta, reduction="none")
        loss = mean_where(errors.mean(dim=3).flatten(1), weights.flatten(1), per_picture=mask.alike)
        logs["target_spread"] = feature_spread(target.flatten(0, 1))
        return Step(loss, logs)

    def after_step(self, progress: float) -> None:
        super().after_step(progress)
        self.slow.update(self.student, self.config.momentum.at(progress))

    def agreement(self, batch: Batch, progress: float) -> tuple[Float[Tensor, "BK N"], Mask]:
        """(1 + cosine) / 2 of prediction and target, the mean over blocks that ask for a patch; NaN where none does."""
        patches, mask, _ = self.sample(batch, progress)
        targets, hidden = mask.at_blocks(mask.repeat(self.slow(batch.images))), mask.at_blocks(mask.hidden)
        cosine = F.cosine_similarity(self.predict(patches, mask), targets, dim=3)
        place, zeros = mask.blocks.flatten(1), torch.zeros_like(mask.hidden, dtype=torch.float32)
        total = zeros.scatter_add(1, place, ((1 + cosine) / 2 * hidden).flatten(1))
        return total / zeros.scatter_add(1, place, hidden.float().flatten(1)), mask
