"""CAPI: a student predicts in which clusters a slow teacher's patches lie. A Batch enters, a Step leaves."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mimkit.core.batch import Batch, DatasetView, Step
from mimkit.core.errors import UserError, at_least
from mimkit.guidance.sampler import refuse_exploitation
from mimkit.masks import Mask, Masker
from mimkit.masks.inverse import InverseBlockMasker
from mimkit.methods.assignment import cross_entropy, entropy, sinkhorn
from mimkit.methods.base import MaskedConfig, MaskedMethod
from mimkit.methods.losses import feature_spread, mean_where
from mimkit.methods.momentum import Momentum
from mimkit.model.latents import LatentTarget, LatentTargetConfig
from mimkit.model.projector import Clusters, Prototypes
from mimkit.model.reader import Predictor, put_at
from mimkit.model.vit import Encoder


@dataclass(kw_only=True, slots=True)
class CAPIConfig(MaskedConfig):
    """CAPI (Darcet et al. 2025, arXiv:2502.08769; facebookresearch/capi:train_capi.py, model.py), for ViTs.

    The encoder that leaves is the teacher's, which informed maskers look through too.
    """

    needs_whole_batch = True
    against_collapse = ("assignment_temperature", "iterations", "momentum.first")

    masker: Masker = field(default_factory=InverseBlockMasker)
    clusters: int = 16384
    """In which the teacher's patches are put."""
    temperature: float = 0.12
    """Numbers of the student, and of the clustering head in its own loss, are divided by it before the softmax."""
    assignment_temperature: float = 0.06
    """The same of the numbers from which patches are assigned: lower, so sharper."""
    iterations: int = 3
    """Of Sinkhorn's divisions, place by place over the batch of all processes; 0: a softmax, which may collapse."""
    momentum: Momentum = field(default_factory=lambda: Momentum(first=0.999, stretch=1.25, warmup=0.1))
    """How slowly the teacher follows: at first not at all."""
    depth: int = 12
    """Blocks of the predictor, which is as wide as the encoder."""
    heads: int = 16
    """Attention heads of the predictor."""
    clustering_rate: float = 0.5
    """What the clustering head has of the learning rate."""
    patch_rate: float = 0.2
    """What the patch embedding has of the learning rate."""

    def build(self, encoder: Encoder) -> "CAPI":
        self.momentum.check()
        at_least(0, **{"method.iterations": self.iterations})
        at_least(1, **{f"method.{name}": getattr(self, name) for name in ("clusters", "depth", "heads")})
        for name in ("temperature", "assignment_temperature", "clustering_rate", "patch_rate"):
            if not getattr(self, name) > 0:
                raise UserError(f"method.{name} must be above 0, got {getattr(self, name):g}")
        if encoder.width % self.heads or encoder.width % 4:
            raise UserError(f"encoder.width {encoder.width} must be divisible by 4 and by method.heads {self.heads}")
        refuse_exploitation(self.masker, "CAPI")
        return CAPI(encoder, self)


class CAPI(MaskedMethod):
    """The teacher sees whole pictures, the student visible patches; a predictor reads there what hidden ones are."""

    student: Encoder  # type: ignore[bad-override]

    def __init__(self, student: Encoder, config: CAPIConfig) -> None:
        slow = LatentTarget(student, LatentTargetConfig(normed=True))
        super().__init__(student, config.masker, average=slow.module)
        self.slow, self.config, width = slow, config, student.width
        self.predictor = Predictor(student, config.depth, config.heads)
        self.head = Prototypes(width, config.clusters, unit=False)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        self.clustering = Clusters(width, config.clusters)
        self.rates = {"clustering.": config.clustering_rate, "encoder.timm.patch_embed.": config.patch_rate}

    @property
    def encoder(self) -> Encoder:  # type: ignore[override]
        """The teacher's: it is ahead of the student's, and what the authors evaluate."""
        assert isinstance(self.slow.module, Encoder)
        return self.slow.module

    def setup(self, dataset: DatasetView, resumed: bool) -> None:
        if not resumed:
            self.slow.update(self.student, 0.0)  # released weights were loaded after the copy was made

    def predict(
        self, patches: Float[Tensor, "B N P"], mask: Mask
    ) -> tuple[Float[Tensor, "BK M K"], Int64[Tensor, "BK M"]]:
        """Scores with each cluster where patches are hidden, and where that is."""
        read, places = self.predictor(self.student, patches, mask)
        return self.head(read), places

    def forward(self, batch: Batch, progress: float) -> Step:
        patches, mask, logs = self.sample(batch, progress)
        latents = self.slow(batch.images)
        scores = self.clustering(latents)
        shares = sinkhorn(scores.detach() / self.config.assignment_temperature, self.config.iterations)
        errors = cross_entropy(shares, scores / self.config.temperature)
        own = errors.mean() if mask.measured is None else mean_where(errors, mask.measured[:: mask.views])
        prediction, places = self.predict(patches, mask)
        target = mask.repeat(shares).take_along_dim(places.unsqueeze(2), dim=1)
        errors = cross_entropy(target, prediction / self.config.temperature).unsqueeze(2)
        where = put_at(errors, places, mask.hidden.shape[1])[..., 0]
        loss = mean_where(where, mask.counted, per_picture=mask.alike)
        logs |= {"prediction": loss.detach(), "clustering": own.detach()}
        logs |= {"entropy": entropy(shares.mean(dim=(0, 1))), "patch_entropy": entropy(shares).mean()}
        logs["target_spread"] = feature_spread(latents.flatten(0, 1))
        return Step(loss + own, logs)  # one loss: the gradient of neither reaches what the other trains

    def after_step(self, progress: float) -> None:
        super().after_step(progress)
        self.slow.update(self.student, self.config.momentum.at(progress))

    @torch.no_grad()
    def agreement(self, batch: Batch, progress: float) -> tuple[Float[Tensor, "BK N"], Mask]:
        """What prediction and teacher have in common of each predicted patch (Bhattacharyya), NaN elsewhere."""
        patches, mask, _ = self.sample(batch, progress)
        prediction, places = self.predict(patches, mask)
        scores = mask.repeat(self.clustering(self.slow(batch.images))).take_along_dim(places.unsqueeze(2), dim=1)
        both = [(x / self.config.temperature).softmax(dim=2).sqrt() for x in (prediction, scores)]
        common = put_at((both[0] * both[1]).sum(dim=2, keepdim=True), places, mask.hidden.shape[1])[..., 0]
        return common.masked_fill(~mask.hidden, torch.nan), mask
