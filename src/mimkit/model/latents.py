"""Latent targets: whole images enter a slow copy of the encoder, what it says about each patch leaves."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mimkit.core.errors import UserError, at_least
from mimkit.model.backbone import Tokens
from mimkit.model.beit import BeitEncoder
from mimkit.model.patches import patchify
from mimkit.model.projector import SlowCopy
from mimkit.model.vit import Encoder


@dataclass(kw_only=True, slots=True)
class LatentTargetConfig:
    """What of a slow teacher is predicted: the outputs of its last blocks."""

    layers: int = 1
    """How many of its last blocks; of several, the mean (data2vec: 6 of 12)."""
    normed: bool = False
    """Behind the encoder's final norm, of the last block alone (I-JEPA, CAE, CAPI)."""
    standardize: Literal["none", "each", "mean", "both"] = "none"
    """Zero mean and unit variance over the channels of a token, without weights: of `each` block's output, of their
    `mean`, or of `both` (data2vec)."""

    def check(self, depth: int) -> None:
        """Refuse what an encoder of so many blocks cannot give."""
        at_least(1, **{"target.layers": self.layers})
        if self.layers > depth:
            raise UserError(f"target.layers {self.layers} is more than the encoder's {depth} blocks")
        if self.normed and self.layers > 1:
            raise UserError("target.normed is the output of the encoder's norm, which one block has: use layers 1")


class LatentTarget(SlowCopy):
    """A slow copy of the encoder in eval mode, without gradient, that looks at whole images."""

    module: Encoder | BeitEncoder

    def __init__(self, encoder: Encoder | BeitEncoder, config: LatentTargetConfig) -> None:
        config.check(len(encoder.timm.blocks))
        super().__init__(encoder, calm=True)
        self.config = config

    @torch.no_grad()
    def tokens(self, images: Float[Tensor, "B C H W"]) -> Tokens:
        """Targets of class and register tokens and of all patches, float32."""
        encoder, config = self.module, self.config
        outputs = encoder.by_block(encoder.embed(patchify(images, encoder.patch)))[-config.layers :]
        joined = [torch.cat(tokens, dim=1) for tokens in outputs]
        if config.normed:
            joined = [encoder.timm.norm(joined[0])]
        joined = [x.float() for x in joined]
        if config.standardize in ("each", "both"):
            joined = [standardized(x) for x in joined]
        mean = joined[0] if len(joined) == 1 else torch.stack(joined).mean(dim=0)
        if config.standardize in ("mean", "both"):
            mean = standardized(mean)
        prefix = encoder.timm.num_prefix_tokens
        return Tokens(mean[:, :prefix], mean[:, prefix:])

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:  # type: ignore[bad-override]
        """Targets of all patches, float32."""
        return self.tokens(images).patches


def standardized(x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """Zero mean and unit (biased) variance of each vector, eps 1e-5: a LayerNorm without weights."""
    x = x.float()
    return F.layer_norm(x, x.shape[-1:], eps=1e-5)
