"""data2vec: a student that sees part of a picture predicts a slow teacher's latents. A Batch enters, a Step leaves."""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.core.batch import Batch, DatasetView, Step
from mimkit.core.errors import UserError
from mimkit.guidance.sampler import refuse_exploitation, refuse_reading_maskers
from mimkit.masks import BlockMasker, Mask, Masker
from mimkit.methods.base import MaskedConfig, MaskedMethod
from mimkit.methods.losses import feature_spread, mean_where
from mimkit.methods.momentum import Momentum
from mimkit.model.beit import BeitEncoder, refuse_beit
from mimkit.model.grid_decoder import GridDecoderConfig
from mimkit.model.latents import LatentTarget, LatentTargetConfig
from mimkit.model.vit import Encoder


@dataclass(kw_only=True, slots=True)
class Data2VecConfig(MaskedConfig):
    """data2vec for pictures (Baevski et al. 2022, arXiv:2202.03555; facebookresearch/data2vec_vision:beit/), and with a
    `decoder` what version 2.0 made of it (arXiv:2212.07525; facebookresearch/fairseq:examples/data2vec)."""

    beits = True  # in version 1 the encoder leaves no patch out
    against_collapse = ("momentum.first",)

    masker: Masker = field(default_factory=lambda: BlockMasker(ratio=0.61, exact=False))
    """Of several views of a picture all have the same targets, so that the teacher runs once (2.0 has 16)."""
    target: LatentTargetConfig = field(default_factory=lambda: LatentTargetConfig(layers=6, standardize="both"))
    """What is predicted: by default the mean of the teacher's last six blocks, standardized before and after."""
    momentum: Momentum = field(default_factory=lambda: Momentum(first=0.9998, shape="constant"))
    """How slowly the teacher follows."""
    decoder: GridDecoderConfig | None = None
    """None: the student has a learned token where patches are hidden, and a linear layer predicts. With one: the
    encoder sees the visible patches alone, and convolutions predict the others."""
    loss: Literal["smooth_l1", "l2"] = "smooth_l1"
    """Of a token: the mean over its numbers with a bend at `beta`, or the sum of squares over the root of their number
    (2.0), which is that root for a prediction of zeros."""
    beta: float = 2.0
    """Error at which `smooth_l1` turns from a square, divided by twice this number, into a straight line."""

    def build(self, encoder: Encoder | BeitEncoder) -> "Data2Vec":
        self.momentum.check()
        if not self.beta > 0:
            raise UserError(f"method.beta must be above 0, got {self.beta:g}; data2vec has 2")
        refuse_exploitation(self.masker, "data2vec")
        refuse_reading_maskers(self.masker, encoder)
        if self.decoder is not None:
            refuse_beit(encoder, "leaves no patch out, and data2vec 2.0 encodes visible ones alone", "use a vit_*")
        return Data2Vec(encoder, self)


class Data2Vec(MaskedMethod):
    """The teacher sees whole pictures, the student what the mask leaves; the loss is the mean over all hidden tokens
    of a micro batch of a process. The encoder that leaves is the student's."""

    encoder: Encoder | BeitEncoder  # type: ignore[bad-override]

    def __init__(self, encoder: Encoder | BeitEncoder, config: Data2VecConfig) -> None:
        slow = LatentTarget(encoder, config.target)
        super().__init__(encoder, config.masker, average=slow.module)
        self.slow, self.config = slow, config
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        if config.decoder is None:
            self.head = nn.Linear(encoder.width, encoder.width)
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
        else:
            self.head = config.decoder.build(encoder.width, encoder.grid, encoder.width)

    def setup(self, dataset: DatasetView, resumed: bool) -> None:
        if not resumed:
            self.slow.update(self.encoder, 0.0)  # released weights were loaded after the copy was made

    def predict(self, patches: Float[Tensor, "B N P"], mask: Mask) -> Float[Tensor, "BK N D"]:
        """Predictions for all patches of every view. Nothing of hidden and thrown patches gets in."""
        if self.config.decoder is None:
            unseen = mask.hidden | mask.thrown
            tokens = self.encoder.fill(mask.repeat(patches), unseen, self.mask_token.flatten())
            return self.head(self.encoder.encode(tokens).patches)
        assert isinstance(self.encoder, Encoder)
        latents = self.encoder.encode(self.encoder.embed(patches, mask), mask)
        return self.head(mask.put(latents.patches, self.mask_token))

    def forward(self, batch: Batch, progress: float) -> Step:
        patches, mask, logs = self.sample(batch, progress)
        target, prediction = self.slow(batch.images), self.predict(patches, mask).float()
        errors = self.errors(prediction, mask.repeat(target))
        logs["target_spread"] = feature_spread(target.flatten(0, 1))
        return Step(mean_where(errors, mask.counted, epsilon=1e-5), logs)  # also where nothing is hidden

    def errors(self, prediction: Float[Tensor, "B N D"], target: Float[Tensor, "B N D"]) -> Float[Tensor, "B N"]:
        """How wrong each token is."""
        if self.config.loss == "l2":
            return (prediction - target).square().sum(dim=2) / target.shape[2] ** 0.5
        return F.smooth_l1_loss(prediction, target, beta=self.config.beta, reduction="none").mean(dim=2)

    def after_step(self, progress: float) -> None:
        super().after_step(progress)
        self.slow.update(self.encoder, self.config.momentum.at(progress))

    def agreement(self, batch: Batch, progress: float) -> tuple[Float[Tensor, "BK N"], Mask]:
        """(1 + cosine) / 2 of prediction and target at each hidden patch, NaN elsewhere."""
        patches, mask, _ = self.sample(batch, progress)
        cosine = F.cosine_similarity(self.predict(patches, mask).float(), mask.repeat(self.slow(batch.images)), dim=2)
        return ((1 + cosine) / 2).masked_fill(~mask.hidden, torch.nan), mask
