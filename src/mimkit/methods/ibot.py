"""iBOT: DINO whose student also says what hidden patches are. A Batch enters, a Step leaves."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mimkit.core.batch import Batch, Step
from mimkit.core.distributed import total, world
from mimkit.core.errors import at_least
from mimkit.masks import BlockMasker, Mask, Masker
from mimkit.methods.base import MaskedConfig
from mimkit.methods.dino import moment
from mimkit.methods.distillation import DistillationSettings
from mimkit.methods.losses import distil_patches, feature_spread
from mimkit.methods.masked_dino import MaskedDINO
from mimkit.model.projector import Embedder
from mimkit.model.vit import Encoder


@dataclass(kw_only=True, slots=True)
class IBOTConfig(DistillationSettings, MaskedConfig):
    """iBOT (Zhou et al. 2022, arXiv:2111.07832; bytedance/ibot:main_ibot.py), for ViTs.

    Views as DINO's; of the two whole ones the student sees a token where patches are hidden, each under a mask of its
    own. One head serves class token and patches. The encoder that leaves is the teacher's.
    """

    against_collapse = ("teacher_temperature", "patch_temperature", "center_momentum", "momentum")

    masker: Masker = field(default_factory=lambda: BlockMasker(ratio=0.3, spread=0.2, none=0.5, exact=False))
    teacher_temperature: float = 0.07
    """Of the teacher's class token: the student's is `temperature`."""
    patch_temperature: float = 0.07
    """Of the teacher's patches; it begins and warms up as that of the class token."""
    prototypes: int = 8192
    """Numbers of a distribution."""
    norm_last: bool = False
    """Prototypes stay unit vectors; False: each learns its length."""
    patch_weight: float = 1.0
    """Of the loss of hidden patches beside that of the class token."""

    def build(self, encoder: Encoder) -> "IBOT":
        at_least(0, **{"method.patch_weight": self.patch_weight})
        return IBOT(self.embedder(encoder, "patch_temperature"), self)


class IBOT(MaskedDINO):
    """The class token imitates the teacher's of the other view, hidden patches those of the same view."""

    patch_center: Float[Tensor, " K"]
    patch_seen: Float[Tensor, " K"]
    config: IBOTConfig  # type: ignore[bad-override-mutable-attribute]

    def __init__(self, embedder: Embedder, config: IBOTConfig) -> None:
        super().__init__(embedder, config, config.masker)
        self.register_buffer("patch_center", torch.zeros(config.prototypes))
        self.register_buffer("patch_seen", torch.zeros(config.prototypes), persistent=False)

    def forward(self, batch: Batch, progress: float) -> Step:
        self.refuse_other_sizes(batch)
        whole, crops = [batch.images, batch.other_views[0]], batch.other_views[1:]
        patches, mask, logs = self.sample(whole, batch, progress)
        tokens, head, config = self.student(patches, mask.hidden), self.embedder.projector, self.config
        features = self.all_features(tokens, crops)
        teacher, taught = self.teach(torch.cat(whole))
        views = self.distill(features, teacher, batch, progress)
        self.patch_seen.add_(taught.mean(dim=(0, 1)))
        patch_sharp = config.warmed(config.patch_temperature, moment(batch, progress))
        hidden = distil_patches(
            head(tokens.patches), taught, mask.hidden, self.patch_center, config.temperature, patch_sharp
        )
        logs |= {"class_loss": views.loss.detach(), "patch_loss": hidden.loss.detach(), "entropy": views.entropy}
        logs |= {"patch_entropy": hidden.entropy, "spread": feature_spread(features[: len(batch.images)])}
        return Step(views.loss + config.patch_weight * hidden.loss, logs)

    @torch.no_grad()
    def teach(self, images: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B N K"]]:
        """The teacher's numbers of whole images and of their patches."""
        embedder = self.slow.module
        tokens = embedder.encoder(images)
        return embedder.projector(embedder.pooled(tokens)), embedder.projector(tokens.patches)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.patch_center.lerp_(total(self.patch_seen) / (world() * self.passes), 1 - self.config.center_momentum)
        self.patch_seen.zero_()
        super().after_step(progress)

    @torch.no_grad()
    def agreement(self, batch: Batch, progress: float) -> tuple[Float[Tensor, "B N"], Mask]:
        """How much of the teacher's distribution of each patch the student's has (Bhattacharyya), under a mask."""
        patches, mask, _ = self.sample([batch.images], batch, progress)
        student = self.embedder.projector(self.student(patches, mask.hidden).patches) / self.config.temperature
        sharp = self.config.warmed(self.config.patch_temperature, moment(batch, progress))
        teacher = (self.teach(batch.images)[1] - self.patch_center) / sharp
        return (student.softmax(dim=2) * teacher.softmax(dim=2)).sqrt().sum(dim=2), mask
