"""Predictor: latents of visible patches and a Mask enter, for each block of places what stands there leaves."""

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
from mimkit.model.projector import small_normal
from mimkit.model.vit import Encoder


@dataclass(kw_only=True, slots=True)
class PredictorConfig:
    """I-JEPA's predictor: a narrow ViT over the context and the places of one block at a time."""

    width: int = 384
    """Embedding width."""
    depth: int = 12
    """Number of blocks; the authors have 12 for ViT-H."""
    heads: int | None = None
    """Attention heads; by default as many as the encoder's."""

    def build(self, encoder: Encoder) -> "Predictor":
        """A predictor of this encoder's latents."""
        heads = self.heads or encoder.timm.blocks[0].attn.num_heads
        at_least(1, **{"predictor.width": self.width, "predictor.depth": self.depth, "predictor.heads": heads})
        if self.width % heads or self.width % 4:
            raise UserError(f"predictor.width {self.width} must be divisible by 4 and by the {heads} predictor.heads")
        return Predictor(encoder, self.width, self.depth, heads)


class Predictor(nn.Module):
    """Context tokens and, for each asked place, one learned token, both with fixed sine-cosine positions.

    Every block of places is a sequence of its own, so blocks do not see each other (facebookresearch/ijepa:
    src/models/vision_transformer.py). Prefix tokens take part with zero positions. LayerNorm eps 1e-6.
    """

    def __init__(self, encoder: Encoder, width: int, depth: int, heads: int) -> None:
        super().__init__()
        norm: Any = partial(nn.LayerNorm, eps=1e-6)  # timm asks for a class and takes any callable
        self.embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", sincos_positions(encoder.grid, width).unsqueeze(0))
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        self.norm = norm(width)
        self.head = nn.Linear(width, encoder.width)
        self.apply(small_normal)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, latents: Tokens, mask: Mask) -> Float[Tensor, "BK M T D"]:
        """Predictions at `mask.blocks`; those of surplus slots mean nothing."""
        positions = self.positions.expand(len(mask.hidden), -1, -1)
        prefix, visible = latents.prefix.shape[1], mask.take(positions)
        context = self.embed(torch.cat(latents, dim=1))
        context = torch.cat([context[:, :prefix], context[:, prefix:] + visible], dim=1)
        queries = mask.at_blocks(positions) + self.mask_token
        blocks, places = queries.shape[1:3]
        x = torch.cat([context.unsqueeze(1).expand(-1, blocks, -1, -1), queries.to(context.dtype)], dim=2).flatten(0, 1)
        bias = self._surplus(x, mask, prefix)
        for block in self.blocks:
            x = block(x) if bias is None else block(x, attn_mask=bias)
        return self.head(self.norm(x[:, -places:])).unflatten(0, (-1, blocks))

    def _surplus(self, x: Float[Tensor, "BM L W"], mask: Mask, prefix: int) -> Float[Tensor, "BM 1 1 L"] | None:
        """What hides surplus slots of context and blocks from attention."""
        if not mask.ragged and mask.asked is None:
            return None
        surplus = ~mask.at_blocks(mask.hidden)
        seen = mask.padding.new_zeros(len(mask.hidden), prefix)
        context = torch.cat([seen, mask.padding], dim=1).unsqueeze(1).expand(-1, surplus.shape[1], -1)
        surplus = torch.cat([context, surplus], dim=2).flatten(0, 1)
        return torch.zeros_like(surplus, dtype=x.dtype).masked_fill(surplus, float("-inf"))[:, None, None, :]
