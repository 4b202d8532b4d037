"""CAE: hidden patches are predicted as latents, and these say which ids they have. A Batch enters, a Step leaves."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from mimkit.core.batch import Batch, DatasetView, Step
from mimkit.core.errors import UserError, at_least
from mimkit.guidance.sampler import refuse_exploitation
from mimkit.masks import BlockMasker, Mask, Masker
from mimkit.methods.base import MaskedConfig, MaskedMethod
from mimkit.methods.losses import feature_spread
from mimkit.methods.targets.base import Targets
from mimkit.methods.targets.tokens import TokenIds
from mimkit.model.projector import SlowCopy
from mimkit.model.reader import hidden_places
from mimkit.model.regressor import Regressor
from mimkit.model.vit import Encoder


@dataclass(kw_only=True, slots=True)
class CAEConfig(MaskedConfig):
    """Context autoencoder (Chen et al. 2022, arXiv:2202.03026; lxtGH/CAE:models/modeling_cae.py)."""

    against_collapse = ("weight",)

    masker: Masker = field(default_factory=lambda: BlockMasker(ratio=0.5))
    target: TokenIds = field(default_factory=TokenIds)
    """Ids of a frozen tokenizer, of which each patch has one."""
    depth: int = 4
    """Blocks of the regressor, as wide as the encoder."""
    decoder_depth: int = 4
    """Blocks of the decoder."""
    scale: float | None = 0.1
    """First values of LayerScale in both; None: none."""
    weight: float = 2.0
    """Of the alignment of predicted latents with those that the encoder gives hidden patches alone."""

    def build(self, encoder: Encoder) -> "CAE":
        at_least(1, **{"method.depth": self.depth, "method.decoder_depth": self.decoder_depth})
        at_least(0, **{"method.weight": self.weight})
        refuse_exploitation(self.masker, "CAE")
        target = self.target.open(encoder)
        if (target.cell, target.cell) != encoder.patch:
            raise UserError(
                f"tokenizer '{target.tokenizer}' gives an id to squares of {target.cell} pixels and patches are "
                f"{encoder.patch[0]}x{encoder.patch[1]}: CAE asks for one id a patch"
            )
        return CAE(encoder, self, Targets(target, encoder))


class CAE(MaskedMethod):
    """The encoder sees visible patches; a copy of it as it was a step ago sees the hidden ones, as the target."""

    encoder: Encoder  # type: ignore[bad-override]

    def __init__(self, encoder: Encoder, config: CAEConfig, target: Targets) -> None:
        super().__init__(encoder, config.masker)
        first: Any = encoder.timm.blocks[0]
        self.config, self.target, self.slow = config, target, SlowCopy(encoder)
        self.regressor = Regressor(
            encoder.grid,
            encoder.width,
            heads=first.attn.num_heads,
            depth=config.depth,
            decoder_depth=config.decoder_depth,
            scale=config.scale,
            outputs=target.target.classes,
        )

    def setup(self, dataset: DatasetView, resumed: bool) -> None:
        if not resumed:
            self.slow.update(self.encoder, 0.0)  # released weights were loaded after the copy was made

    def predict(
        self, patches: Float[Tensor, "B N P"], mask: Mask
    ) -> tuple[Float[Tensor, "BK M D"], Float[Tensor, "BK M O"], Int64[Tensor, "BK M"]]:
        """Latents and scores of ids of hidden patches, and where they are.

        Raises:
            UserError: pictures hide unequally many patches, or some are thrown away.
        """
        if mask.ragged or mask.decoded is not None:
            raise UserError(
                "CAE's teacher sees exactly the hidden patches, as many of each picture, and "
                f"{type(self.mask_sampler.configured.guide).__name__} throws patches away or hides unequally many, or "
                "pictures have holes: use a masker with one ratio"
            )
        places = hidden_places(mask)
        visible = self.encoder.encode(self.encoder.embed(patches, mask)).patches  # the class token is not read
        latents, scores = self.regressor(visible, mask.visible, places)
        return latents, scores, places

    @torch.no_grad()
    def teach(
        self, patches: Float[Tensor, "B N P"], mask: Mask, places: Int64[Tensor, "BK M"]
    ) -> Float[Tensor, "BK M D"]:
        """What the copy makes of the hidden patches alone."""
        copy = self.slow.module
        return copy.encode(copy.embed(patches, Mask(~mask.hidden, places, mask.views))).patches

    def forward(self, batch: Batch, progress: float) -> Step:
        patches, mask, logs = self.sample(batch, progress)
        latents, scores, places = self.predict(patches, mask)
        target = self.teach(patches, mask, places).float()
        ids = mask.repeat(self.target(batch.images).flatten(1)).gather(1, places)
        tokens = F.cross_entropy(scores.float().flatten(0, 1), ids.flatten())
        alignment = (latents.float() - target).square().mean()
        logs |= {"tokens": tokens.detach(), "alignment": alignment.detach()}
        logs["target_spread"] = feature_spread(target.flatten(0, 1))
        return Step(tokens + self.config.weight * alignment, logs)

    def before_step(self, progress: float) -> None:
        self.slow.update(self.encoder, 0.0)  # before the weights move: a target is of one step ago, as in the code

    @torch.no_grad()
    def agreement(self, batch: Batch, progress: float) -> tuple[Float[Tensor, "BK N"], Mask]:
        """(1 + cosine) / 2 of predicted latents and the copy's at each hidden patch, NaN elsewhere."""
        patches, mask, _ = self.sample(batch, progress)
        latents, _, places = self.predict(patches, mask)
        cosine = F.cosine_similarity(latents.float(), self.teach(patches, mask, places).float(), dim=2)
        full = torch.full(mask.hidden.shape, torch.nan, device=cosine.device)
        return full.scatter(1, places, (1 + cosine) / 2), mask
