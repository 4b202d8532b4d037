"""DINO: a student that sees crops imitates a slow teacher that sees whole views. A Batch enters, a Step leaves."""

from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mimkit.core.batch import Batch, DatasetView, Step
from mimkit.core.distributed import total, world
from mimkit.core.errors import UserError, at_least
from mimkit.methods.base import Method, MethodConfig
from mimkit.methods.losses import distil, feature_spread
from mimkit.methods.momentum import Momentum
from mimkit.methods.simclr import second_view
from mimkit.model.projector import Embedder, Pool, SlowCopy, prototype_head, small_normal
from mimkit.model.vit import Encoder


@dataclass(kw_only=True, slots=True)
class DINOConfig(MethodConfig):
    """DINO (Caron et al. 2021, arXiv:2104.14294; facebookresearch/dino:main_dino.py), for ViTs.

    The first view and the first of `images.other_views` are whole ones, which the teacher sees too; the further
    ones are crops for the student alone, as many and as small as they are. The encoder that leaves is the teacher's.
    """

    against_collapse = ("teacher_temperature", "center_momentum", "momentum")

    temperature: float = 0.1
    """The student's numbers are divided by it before the softmax."""
    teacher_temperature: float = 0.04
    """The same of the teacher: lower, so sharper; above 0.07 is unstable."""
    first_temperature: float = 0.04
    """The teacher's temperature at the start."""
    warmup: float = 0.0
    """Share of training in which it goes from the first to the last, linearly."""
    momentum: float = 0.996
    """Share of the teacher that stays in the first step; it rises to 1 in half a cosine."""
    center_momentum: float = 0.9
    """Share of the center that stays in each step."""
    prototypes: int = 65536
    """Numbers of a distribution."""
    hidden: int = 2048
    """Width of the hidden layers of the head."""
    bottleneck: int = 256
    """Numbers of the unit vectors that are compared with the prototypes."""
    norm_last: bool = True
    """Prototypes stay unit vectors; False may be better for small encoders, and less stable."""
    freeze_last: float = 0.01
    """Share of training, from its start, in which the prototypes stay as they are: an epoch in a hundred."""
    pool: Pool | None = None
    """What is projected: the `class` token, or the `mean` of the patches; by default the former where there is one."""

    def build(self, encoder: Encoder) -> "DINO":
        for name in ("temperature", "teacher_temperature", "first_temperature"):
            if not getattr(self, name) > 0:
                raise UserError(f"method.{name} must be above 0, got {getattr(self, name):g}; 0.04 to 0.1 is usual")
        for name in ("warmup", "momentum", "center_momentum", "freeze_last"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"method.{name} is a share between 0 and 1, got {getattr(self, name):g}")
        at_least(1, **{f"method.{name}": getattr(self, name) for name in ("prototypes", "hidden", "bottleneck")})
        widths = [encoder.width, *[self.hidden] * 2, self.bottleneck]
        head = prototype_head(widths, self.prototypes, unit=self.norm_last)
        encoder.timm.apply(small_normal)
        return DINO(Embedder(encoder, self.pool, head), self)


class DINO(Method):
    """Views of one size pass the student's encoder together, and all of them its head; the teacher drops no paths."""

    center: Float[Tensor, " K"]
    seen: Float[Tensor, " K"]
    passes: Int64[Tensor, ""]

    def __init__(self, embedder: Embedder, config: DINOConfig) -> None:
        super().__init__()
        self.embedder, self.slow, self.config = embedder, SlowCopy(embedder, calm=True), config
        self.register_buffer("center", torch.zeros(config.prototypes))
        self.register_buffer("seen", torch.zeros(config.prototypes), persistent=False)  # by the teacher in this step
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64), persistent=False)

    @property
    def encoder(self) -> Encoder:  # type: ignore[override]
        """The teacher's: it is ahead of the student's, and what the authors release."""
        return self.slow.module.encoder

    def setup(self, dataset: DatasetView, resumed: bool) -> None:
        if not resumed:
            self.slow.update(self.embedder, 0.0)  # released weights were loaded after the copy was made

    def forward(self, batch: Batch, progress: float) -> Step:
        if second_view(batch).shape != batch.images.shape:
            raise UserError(
                "DINO's teacher sees two views of images.size: give the first of images.other_views no size"
            )
        views = [batch.images, *batch.other_views]
        alike = [torch.cat([*group]) for _, group in groupby(views, lambda view: view.shape)]
        features = torch.cat([self.embedder.features(images) for images in alike])
        student = self.embedder.projector(features).unflatten(0, (len(views), -1))
        teacher = self.slow(torch.cat(views[:2])).unflatten(0, (2, -1))
        self.seen.add_(teacher.mean(dim=(0, 1)))
        self.passes.add_(1)
        sharp = self.teacher_temperature(progress if batch.progress is None else batch.progress)
        distillation = distil(student, teacher, self.center, self.config.temperature, sharp)
        return Step(
            distillation.loss,
            {"entropy": distillation.entropy, "spread": feature_spread(features[: len(batch.images)])},
        )

    def teacher_temperature(self, moment: float | Float[Tensor, ""]) -> float | Float[Tensor, ""]:
        """The teacher's temperature when so much of training is over."""
        first, last, warmup = self.config.first_temperature, self.config.teacher_temperature, self.config.warmup
        return first + (last - first) * torch.as_tensor(moment / warmup).clamp(max=1) if warmup else last

    def before_step(self, progress: float) -> None:
        if progress < self.config.freeze_last:
            self.embedder.projector.get_submodule("prototypes").zero_grad(set_to_none=True)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.slow.update(self.embedder, Momentum(first=self.config.momentum).at(progress))
        self.center.lerp_(total(self.seen) / (world() * self.passes), 1 - self.config.center_momentum)
        self.seen.zero_()
        self.passes.zero_()
