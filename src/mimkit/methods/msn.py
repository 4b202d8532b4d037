"""MSN: a view without some patches and small crops say which prototypes another view has. A Batch in, a Step out."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.core.batch import Batch, DatasetView, Step
from mimkit.core.distributed import gather_with_gradient
from mimkit.core.errors import UserError, at_least
from mimkit.guidance.sampler import MaskSampler, refuse_exploitation, refuse_holes, refuse_several
from mimkit.masks import Masker, RandomMasker
from mimkit.methods.assignment import entropy, sinkhorn
from mimkit.methods.base import MaskedConfig, Method
from mimkit.methods.dino import by_size
from mimkit.methods.losses import feature_spread
from mimkit.methods.momentum import Momentum
from mimkit.methods.simclr import second_view
from mimkit.model.patches import patchify
from mimkit.model.projector import Embedder, Pool, Prototypes, SlowCopy, mlp, small_normal
from mimkit.model.vit import Encoder


@dataclass(kw_only=True, slots=True)
class MSNConfig(MaskedConfig):
    """Masked Siamese networks (Assran et al. 2022, arXiv:2204.07141; facebookresearch/msn:src/losses.py), for ViTs.

    The first view is seen without the patches that the masker hides, the first of `images.other_views` whole and by the
    slow copy, further ones are crops. The encoder that leaves is the slow copy's.
    """

    needs_whole_batch = True
    against_collapse = ("weight", "iterations", "sharpening", "temperature")

    masker: Masker = field(default_factory=lambda: RandomMasker(ratio=0.15, same=True))
    temperature: float = 0.1
    """Cosines with prototypes are divided by it before the softmax."""
    sharpening: float = 0.25
    """The slow copy's probabilities are taken to the power of 1 / this."""
    iterations: int = 3
    """Of Sinkhorn's balancing of these over the batch; 0: none."""
    weight: float = 1.0
    """Of the entropy of the mean prediction, which is made large."""
    momentum: float = 0.996
    """Share of the slow copy that stays in the first step; it rises linearly, 0.8 of the way to 1."""
    prototypes: int = 1024
    """Learned directions."""
    hidden: int = 2048
    """Width of the hidden layers of the head."""
    outputs: int = 256
    """Numbers of a point that is compared with prototypes."""
    pool: Pool | None = None
    """What is projected: the `class` token, or the `mean` of the patches; by default the former where there is one."""

    def build(self, encoder: Encoder) -> "MSN":
        for name in ("temperature", "sharpening"):
            if not getattr(self, name) > 0:
                raise UserError(f"method.{name} must be above 0, got {getattr(self, name):g}; 0.1 to 0.25 is usual")
        Momentum(first=self.momentum).check()
        at_least(0, **{"method.weight": self.weight, "method.iterations": self.iterations})
        at_least(1, **{f"method.{name}": getattr(self, name) for name in ("prototypes", "hidden", "outputs")})
        head = mlp([encoder.width, self.hidden, self.hidden, self.outputs], between=nn.GELU)
        for module in (encoder.timm, head):  # as the code (facebookresearch/msn:src/msn_train.py)
            module.apply(small_normal)
        return MSN(Embedder(encoder, self.pool, head), self)


class MSN(Method):
    """Prototypes learn with the student and serve both; BatchNorm sees views of one size at a time."""

    no_weight_decay = ("prototypes.weight",)

    def __init__(self, embedder: Embedder, config: MSNConfig) -> None:
        super().__init__()
        self.embedder, self.slow, self.config = embedder, SlowCopy(embedder), config
        self.prototypes = Prototypes(config.outputs, config.prototypes, unit=True)
        self.mask_sampler = MaskSampler(config.masker, embedder.encoder, average=self.encoder)
        refuse_exploitation(config.masker, "MSN")
        refuse_several(self.mask_sampler, "MSN", ragged=False)

    @property
    def encoder(self) -> Encoder:  # type: ignore[override]
        """The slow copy's, which is what the authors release."""
        return self.slow.module.encoder

    def setup(self, dataset: DatasetView, resumed: bool) -> None:
        if not resumed:
            self.slow.update(self.embedder, 0.0)  # released weights were loaded after the copy was made

    def forward(self, batch: Batch, progress: float) -> Step:
        refuse_holes(batch, "MSN")
        if second_view(batch).shape != batch.images.shape:
            raise UserError("MSN's slow copy sees images.size: give the first of images.other_views no size")
        encoder: Encoder = self.embedder.encoder  # type: ignore[bad-assignment]
        crops = batch.other_views[1:]
        patches = patchify(batch.images, self.encoder.patch)
        mask, logs = self.mask_sampler(encoder, patches, batch, progress)
        features = self.embedder.pooled(encoder.encode(encoder.embed(patches, mask), mask))
        points = [self.embedder.projector(features), *(self.embedder(images) for images in by_size(crops))]
        with torch.no_grad():
            targets = self.balanced(self.prototypes(self.slow(second_view(batch))))
        cross_entropy, mean = self.assign(self.prototypes(torch.cat(points)), targets)
        spread_out = entropy(mean)
        loss = cross_entropy + self.config.weight * (math.log(self.config.prototypes) - spread_out)
        logs |= {"hidden": mask.hidden.float().mean(), "spread": feature_spread(features)}
        return Step(loss, logs | {"entropy": entropy(targets).mean(), "mean_entropy": spread_out.detach()})

    def balanced(self, cosines: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """What the slow copy says of each picture: sharpened probabilities, of all prototypes about as much."""
        chances = (cosines / self.config.temperature).log_softmax(dim=1)
        return sinkhorn((chances / self.config.sharpening).log_softmax(dim=1), self.config.iterations)

    def assign(
        self, cosines: Float[Tensor, "VB K"], targets: Float[Tensor, "B K"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " K"]]:
        """Cross-entropy of views, one after the other, with their pictures' targets; their mean over processes."""
        chances = (cosines / self.config.temperature).log_softmax(dim=1)
        repeated = targets.repeat(len(chances) // len(targets), 1)
        mean = gather_with_gradient(chances.exp().mean(dim=0)).mean(dim=0)
        return -(repeated * chances).sum(dim=1).mean(), mean

    def after_step(self, progress: float) -> None:
        self.mask_sampler.update(self.embedder.encoder)
        rule = Momentum(first=self.config.momentum, shape="linear", stretch=1.25)
        self.slow.update(self.embedder, rule.at(progress))

    def before_epoch(self, epoch: int, progress: float, dataset: DatasetView) -> dict[str, float]:
        return self.mask_sampler.before_epoch(self.embedder.encoder, epoch, progress, dataset)
