"""MST: DINO whose student sees views without what matters least, and restores them. A Batch enters, a Step leaves."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mimkit.core.batch import Batch, Step
from mimkit.core.errors import at_least
from mimkit.masks import AttMaskMasker, Mask, Masker
from mimkit.masks.informed import choice
from mimkit.methods.base import MaskedConfig
from mimkit.methods.distillation import DistillationSettings
from mimkit.methods.losses import DISTANCES, feature_spread, mean_where
from mimkit.methods.masked_dino import MaskedDINO
from mimkit.model.backbone import Tokens
from mimkit.model.decoder import Decoder, DecoderConfig
from mimkit.model.patches import unpatchify
from mimkit.model.projector import Embedder
from mimkit.model.vit import Encoder


@dataclass(kw_only=True, slots=True)
class MSTConfig(DistillationSettings, MaskedConfig):
    """MST (Li et al. 2021, arXiv:2106.05656), for ViTs; views as DINO's. The encoder that leaves is the teacher's.

    The paper came without code and says neither how many patches are hidden nor what restores them: these are options
    with our defaults.
    """

    against_collapse = ("teacher_temperature", "center_momentum", "momentum")

    masker: Masker = field(default_factory=lambda: AttMaskMasker(hides="low", among=0.5, ratio=0.125, scorer="ema"))
    decoder: DecoderConfig = field(default_factory=lambda: DecoderConfig(depth=2))
    """Of all tokens of the student, which restores the views."""
    distance: str = "l1"
    """Between pixels and restored ones: `l1`, `l2` or `smooth_l1`."""
    everywhere: bool = True
    """Count visible patches too, not the hidden ones alone."""
    restore_weight: float = 1.0
    """Of the restoration beside DINO's loss."""

    def build(self, encoder: Encoder) -> "MST":
        choice("distance", self.distance, tuple(DISTANCES), of="method")
        at_least(0, **{"method.restore_weight": self.restore_weight})
        embedder = self.embedder(encoder)
        decoder = self.decoder.build(encoder, encoder.channels * encoder.patch[0] * encoder.patch[1])
        return MST(embedder, decoder, self)


class MST(MaskedDINO):
    """The teacher's attention says where the views are masked: foreground is spared."""

    decoder: Decoder  # type: ignore[bad-override]
    config: MSTConfig  # type: ignore[bad-override-mutable-attribute]

    def __init__(self, embedder: Embedder, decoder: Decoder, config: MSTConfig) -> None:
        super().__init__(embedder, config, config.masker)
        self.decoder = decoder
        decoder.mask_token.requires_grad_(False)  # it gets a latent of every place

    def forward(self, batch: Batch, progress: float) -> Step:
        self.refuse_other_sizes(batch)
        whole = [batch.images, batch.other_views[0]]
        patches, mask, logs = self.sample(whole, batch, progress)
        tokens = self.student(patches, mask.hidden)
        features = self.all_features(tokens, batch.other_views[1:])
        views = self.distill(features, self.slow(torch.cat(whole)), batch, progress)
        errors = DISTANCES[self.config.distance](self.restore(tokens).float() - patches).mean(dim=2)
        where = torch.ones_like(mask.hidden) if self.config.everywhere else mask.hidden
        restoration = mean_where(errors, where, per_picture=mask.alike)
        logs |= {"class_loss": views.loss.detach(), "restoration": restoration.detach(), "entropy": views.entropy}
        logs |= {"spread": feature_spread(features[: len(batch.images)])}
        return Step(views.loss + self.config.restore_weight * restoration, logs)

    def restore(self, tokens: Tokens) -> Float[Tensor, "B N P"]:
        """Pixels of every patch, by all tokens of the student."""
        nothing = Mask.from_scores(torch.zeros_like(tokens.patches[..., 0]), 0)
        return self.decoder(tokens, nothing)

    def reconstruct(self, batch: Batch, progress: float) -> tuple[Tensor, Mask]:
        """The restored first view, in the normalization of its input, and its mask."""
        patches, mask, _ = self.sample([batch.images], batch, progress)
        restored = self.restore(self.student(patches, mask.hidden))
        return unpatchify(restored, self.encoder.patch, self.encoder.grid), mask
