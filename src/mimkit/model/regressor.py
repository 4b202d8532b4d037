"""Regressor: mask tokens and an encoder's patches enter, latents of hidden patches leave (CAE)."""

import torch
from jaxtyping import Float, Int64
from timm.layers import LayerScale, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mimkit.model.patches import sincos_positions
from mimkit.model.reader import CrossAttention, LayerNorm
from mimkit.model.vit import initialize


class RegressorBlock(nn.Module):
    """Queries look at patches and at themselves; the MLP's shortcut begins behind its norm.

    Positions are added to queries and keys, each before a norm of its own, and not to values
    (lxtGH/CAE:models/modeling_cae_helper.py).
    """

    def __init__(self, width: int, heads: int, scale: float | None) -> None:
        super().__init__()
        self.norm_queries, self.norm_keys, self.norm_values = (LayerNorm(width) for _ in range(3))
        self.cross, self.norm, self.mlp = CrossAttention(width, heads, width), LayerNorm(width), Mlp(width, 4 * width)
        self.scale1, self.scale2 = (LayerScale(width, scale) if scale else nn.Identity() for _ in range(2))

    def forward(
        self,
        x: Float[Tensor, "B M D"],
        patches: Float[Tensor, "B V D"],
        at_queries: Float[Tensor, "B M D"],
        at_keys: Float[Tensor, "B T D"],
    ) -> Float[Tensor, "B M D"]:
        """`at_queries`, `at_keys`: positions, those of the keys of patches and queries."""
        values = torch.cat([patches, x], dim=1)
        keys = self.norm_keys(values + at_keys)
        x = x + self.scale1(self.cross(self.norm_queries(x + at_queries), keys, self.norm_values(values)))
        x = self.norm(x)
        return x + self.scale2(self.mlp(x))


class Regressor(nn.Module):
    """CAE's regressor, which says what latents hidden patches have, and its decoder, which says what they show.

    Args:
        grid: of patches.
        width: of the encoder.
        heads, depth: of the regressor's blocks.
        decoder_depth: blocks of self-attention among hidden patches.
        scale: first values of LayerScale; None: none.
        outputs: numbers of a hidden patch.
    """

    positions: Float[Tensor, "N D"]

    def __init__(
        self,
        grid: tuple[int, int],
        width: int,
        *,
        heads: int,
        depth: int,
        decoder_depth: int,
        scale: float | None,
        outputs: int,
    ) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", sincos_positions(grid, width))
        self.blocks = nn.ModuleList(RegressorBlock(width, heads, scale) for _ in range(depth))
        self.norm = LayerNorm(width)
        options = dict(qkv_bias=True, init_values=scale, norm_layer=LayerNorm)
        self.decoder = nn.Sequential(*(Block(width, heads, **options) for _ in range(decoder_depth)))
        self.decoder_norm, self.head = LayerNorm(width), nn.Linear(width, outputs)
        initialize(self)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(
        self, patches: Float[Tensor, "B V D"], visible: Int64[Tensor, "B V"], hidden: Int64[Tensor, "B M"]
    ) -> tuple[Float[Tensor, "B M D"], Float[Tensor, "B M O"]]:
        """Latents and outputs of hidden patches, from normalized visible ones; both with their places."""
        here, there = self.positions[hidden], self.positions[visible]
        x = self.mask_token.expand(*hidden.shape, -1)
        for block in self.blocks:
            x = block(x, patches, here, torch.cat([there, here], dim=1))
        latents = self.norm(x)
        return latents, self.head(self.decoder_norm(self.decoder(latents + here)))
