"""Decoder: latents of visible patches and a Mask enter, a prediction for every patch leaves."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mimkit.core.errors import UserError, at_least
from mimkit.masks.mask import Mask
from mimkit.model.backbone import Tokens
from mimkit.model.patches import sincos_positions
from mimkit.model.vit import Encoder, initialize


@dataclass(kw_only=True, slots=True)
class DecoderConfig:
    """MAE's decoder: a narrow ViT over all patches. The default is the paper's for every encoder size."""

    width: int = 512
    """Embedding width."""
    depth: int = 8
    """Number of blocks."""
    heads: int = 16
    """Attention heads."""

    def build(self, encoder: Encoder, outputs: int) -> "Decoder":
        """A decoder for this encoder's latents that predicts `outputs` numbers a patch."""
        self.check()
        return Decoder(self, encoder, outputs)

    def check(self) -> None:
        """Refuse sizes that cannot be built."""
        at_least(1, **{f"decoder.{name}": getattr(self, name) for name in ("width", "depth", "heads")})
        if self.width % self.heads or self.width % 4:
            raise UserError(f"decoder.width {self.width} must be divisible by 4 and by decoder.heads {self.heads}")


class Decoder(nn.Module):
    """Fills hidden places with a learned mask token and predicts every patch (He et al. 2022, section 3).

    Positions are added a second time, fixed sine-cosine; prefix tokens take part with zero positions. LayerNorm eps
    1e-6, as in facebookresearch/mae:models_mae.py.
    """

    def __init__(self, config: DecoderConfig, encoder: Encoder, outputs: int) -> None:
        super().__init__()
        norm: Any = partial(nn.LayerNorm, eps=1e-6)  # timm asks for a class and takes any callable
        self.embed = nn.Linear(encoder.width, config.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.register_buffer("positions", sincos_positions(encoder.grid, config.width).unsqueeze(0))
        self.blocks = nn.Sequential(
            *(Block(config.width, config.heads, qkv_bias=True, norm_layer=norm) for _ in range(config.depth))
        )
        self.norm = norm(config.width)
        self.head = nn.Linear(config.width, outputs)
        initialize(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def tokens(self, latents: Tokens, mask: Mask) -> Tokens:
        """What the blocks run over: the prefix, and latents or mask tokens with positions where patches are decoded."""
        # One product for prefix and patches: two would be smaller and slower.
        prefix, visible = self.embed(torch.cat(latents, dim=1)).split(
            [latents.prefix.shape[1], latents.patches.shape[1]], dim=1
        )
        patches = mask.put(visible, self.mask_token) + self.positions  # float32, as the residuals
        return Tokens(prefix, mask.take_decoded(patches))

    def predict(self, encoder: Encoder, tokens: Tokens, mask: Mask) -> Float[Tensor, "BK N P"]:
        """Predictions for all patches, from embedded visible ones."""
        return self(encoder.encode(tokens, mask), mask)

    def forward(self, latents: Tokens, mask: Mask) -> Float[Tensor, "BK N P"]:
        """Predictions for all patches, zeros for thrown ones; loss and pictures choose by `mask.hidden`."""
        prefix, patches = self.tokens(latents, mask)
        x = self.blocks(torch.cat([prefix, patches], dim=1))
        # The prefix took part in attention and predicts nothing.
        return mask.put_decoded(self.head(self.norm(x[:, prefix.shape[1] :])))
