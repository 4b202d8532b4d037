"""DINO: a student that sees crops imitates a slow teacher that sees whole views. A Batch enters, a Step leaves."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mimkit.core.batch import Batch, DatasetView, Step
from mimkit.core.distributed import total, world
from mimkit.core.errors import UserError
from mimkit.methods.base import Method, MethodConfig
from mimkit.methods.distillation import DistillationSettings
from mimkit.methods.losses import distil, feature_spread
from mimkit.methods.momentum import Momentum
from mimkit.methods.simclr import second_view
from mimkit.model.projector import Embedder, SlowCopy
from mimkit.model.vit import Encoder


@dataclass(kw_only=True, slots=True)
class DINOConfig(DistillationSettings, MethodConfig):
    """DINO (Caron et al. 2021, arXiv:2104.14294; facebookresearch/dino:main_dino.py), for ViTs.

    The first view and the first of `images.other_views` are whole ones, which the teacher sees too; the further
    ones are crops for the student alone, as many and as small as they are. The encoder that leaves is the teacher's.
    """

    against_collapse = ("teacher_temperature", "center_momentum", "momentum")

    def build(self, encoder: Encoder) -> "DINO":
        return DINO(self.embedder(encoder), self)


class DINO(Method):
    """Views of one size pass the student's encoder together, and all of them its head; the teacher drops no paths."""

    center: Float[Tensor, " K"]
    seen: Float[Tensor, " K"]
    passes: Int64[Tensor, ""]

    def __init__(self, embedder: Embedder, config: DistillationSettings) -> None:
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
        self.refuse_other_sizes(batch)
        views = [batch.images, *batch.other_views]
        features = self.features(views)
        student = self.embedder.projector(features).unflatten(0, (len(views), -1))
        teacher = self.slow(torch.cat(views[:2])).unflatten(0, (2, -1))
        self.seen.add_(teacher.mean(dim=(0, 1)))
        self.passes.add_(1)
        sharp = self.teacher_temperature(moment(batch, progress))
        distillation = distil(student, teacher, self.center, self.config.temperature, sharp)
        return Step(
            distillation.loss,
            {"entropy": distillation.entropy, "spread": feature_spread(features[: len(batch.images)])},
        )

    def refuse_other_sizes(self, batch: Batch) -> None:
        """Refuse a second view that is not as large as the first."""
        if second_view(batch).shape != batch.images.shape:
            raise UserError(
                f"{type(self).__name__}'s teacher sees two views of images.size: give the first of "
                "images.other_views no size"
            )

    def features(self, views: Sequence[Float[Tensor, "B C _ _"]]) -> Float[Tensor, "VB D"]:
        """What the student says of whole views and crops; those of one size, side by side, pass at once."""
        alike = [torch.cat([*group]) for _, group in groupby(views, lambda view: view.shape)]
        return torch.cat([self.embedder.features(images) for images in alike])

    def teacher_temperature(self, moment: float | Float[Tensor, ""]) -> float | Float[Tensor, ""]:
        """The teacher's temperature when so much of training is over."""
        return self.config.warmed(self.config.teacher_temperature, moment)

    def before_step(self, progress: float) -> None:
        if progress < self.config.freeze_last:
            self.embedder.projector.get_submodule("prototypes").zero_grad(set_to_none=True)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.slow.update(self.embedder, Momentum(first=self.config.momentum).at(progress))
        self.center.lerp_(total(self.seen) / (world() * self.passes), 1 - self.config.center_momentum)
        self.seen.zero_()
        self.passes.zero_()


def moment(batch: Batch, progress: float) -> float | Float[Tensor, ""]:
    """Progress for arithmetic: on the device, where the batch brings it."""
    return progress if batch.progress is None else batch.progress
