"""DINO under masks: whole views and a masker enter, what the student makes of the masked views leaves."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mimkit.core.batch import Batch, DatasetView
from mimkit.core.errors import UserError
from mimkit.core.randomness import following, integer
from mimkit.guidance.sampler import MaskSampler, refuse_exploitation, refuse_holes, refuse_several
from mimkit.masks import Mask, Masker
from mimkit.masks.informed import ModelMasker
from mimkit.methods.dino import DINO, moment
from mimkit.methods.distillation import DistillationSettings
from mimkit.methods.losses import Distillation, distil
from mimkit.model.backbone import Tokens
from mimkit.model.patches import patchify
from mimkit.model.projector import Embedder

VIEWS = integer("view", 0), integer("view", 1)
"""By which the random keys of a picture become those of its two masks."""


class MaskedDINO(DINO):
    """DINO whose student sees both whole views under masks."""

    def __init__(self, embedder: Embedder, config: DistillationSettings, masker: Masker) -> None:
        super().__init__(embedder, config)
        name, guide = type(self).__name__, masker.guide
        self.mask_token = nn.Parameter(torch.zeros(1, embedder.encoder.embed_width))
        self.mask_sampler = MaskSampler(masker, embedder.encoder, average=self.encoder)
        refuse_exploitation(masker, name)
        refuse_several(self.mask_sampler, name)
        if isinstance(guide, ModelMasker) and guide.refresh:
            raise UserError(f"{name} masks two views and cached maps follow the first alone: use masker.refresh 0")

    def sample(
        self, views: Sequence[Float[Tensor, "B C H W"]], batch: Batch, progress: float
    ) -> tuple[Float[Tensor, "VB N P"], Mask, dict[str, Tensor]]:
        """Patches of some whole views, one view after the other, and their masks, drawn for each view."""
        refuse_holes(batch, type(self).__name__)
        keys = torch.cat([following(batch.rng_keys, number) for number in VIEWS[: len(views)]])
        whole = Batch(torch.cat([*views]), keys, batch.index.repeat(len(views)), progress=batch.progress)
        patches = patchify(whole.images, self.encoder.patch)
        mask, logs = self.mask_sampler(self.embedder.encoder, patches, whole, progress)
        return patches, mask, {"hidden": mask.hidden.float().mean()} | logs

    def student(self, patches: Float[Tensor, "VB N P"], hidden: Bool[Tensor, "VB N"]) -> Tokens:
        """What the student makes of whole views; nothing of hidden patches gets in."""
        encoder = self.embedder.encoder
        return encoder.encode(encoder.fill(patches, hidden, self.mask_token[0]))

    def distill(
        self, features: Float[Tensor, "VB D"], teacher: Float[Tensor, "TB K"], batch: Batch, progress: float
    ) -> Distillation:
        """DINO's loss of what the student says of all views; the teacher's numbers go into the next center."""
        views = features.shape[0] // len(batch.images)
        student = self.embedder.projector(features).unflatten(0, (views, -1))
        self.seen.add_(teacher.mean(dim=0))
        self.passes.add_(1)
        sharp = self.teacher_temperature(moment(batch, progress))
        return distil(student, teacher.unflatten(0, (2, -1)), self.center, self.config.temperature, sharp)

    def all_features(self, tokens: Tokens, crops: Sequence[Float[Tensor, "B C _ _"]]) -> Float[Tensor, "VB D"]:
        """What the student says of the masked whole views, and of crops."""
        return torch.cat([self.embedder.pooled(tokens), *([self.features(crops)] if crops else [])])

    def after_step(self, progress: float) -> None:
        super().after_step(progress)
        self.mask_sampler.update(self.embedder.encoder)

    def before_epoch(self, epoch: int, progress: float, dataset: DatasetView) -> dict[str, float]:
        return self.mask_sampler.before_epoch(self.embedder.encoder, epoch, progress, dataset)
