"""BEiT encoder: a timm Beit with its relative positions on the full grid. Images or patches enter, Tokens leave."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from timm.models.beit import Beit
from torch import Tensor, nn

from mimkit.core.errors import UserError
from mimkit.model.backbone import Backbone, Tokens


class BeitEncoder(Backbone):
    """A sibling of `Encoder` for timm's Beit: biases by relative position, shared by all blocks or each block's own,
    and LayerScale. No patch can be left out, a token stands for it.

    Released weights of BEiT and data2vec, which have no norm of their own behind the pooling, fit it.
    """

    def __init__(self, vit: Beit) -> None:
        super().__init__()
        self.timm = vit
        vit.reset_classifier(0, "avg")  # a head gets no gradient in pre-training, and DDP insists on one
        if isinstance(vit.norm, nn.Identity):
            vit.norm, vit.fc_norm = vit.fc_norm, vit.norm
        embedding: Any = vit.patch_embed
        self.patch = tuple(embedding.patch_size)
        self.grid = self.out_grid = tuple(embedding.grid_size)
        self.width, self.channels = embedding.proj.weight.shape[:2]
        self.embed_width = self.width

    def embed(self, patches: Float[Tensor, "B N P"]) -> Tokens:
        """All patches of `patchify` to tokens."""
        return self._placed(self.embed_patches(patches))

    def fill(self, patches: Float[Tensor, "B N P"], hidden: Bool[Tensor, "B N"], token: Float[Tensor, " D"]) -> Tokens:
        x = self.embed_patches(patches)
        return self._placed(torch.where(hidden.unsqueeze(2), token.to(x.dtype), x))

    def encode(self, tokens: Tokens) -> Tokens:
        """Run the blocks and the final norm."""
        return self._split(self.timm.norm(torch.cat(self.by_block(tokens)[-1], dim=1)))

    def by_block(self, tokens: Tokens) -> list[Tokens]:
        """What each block gives out, in their order: the residual stream, before the final norm."""
        x, outputs = self.timm.pos_drop(torch.cat(tokens, dim=1)), []
        bias = None if self.timm.rel_pos_bias is None else self.timm.rel_pos_bias()
        for block in self.timm.blocks:
            x = block(x, shared_rel_pos_bias=bias)
            outputs.append(self._split(x))
        return outputs

    def forward(self, images: Float[Tensor, "B C H W"]) -> Tokens:
        """Tokens of whole images, bit for bit timm's `forward_features`."""
        return self._split(self.timm.forward_features(images))

    def _placed(self, x: Float[Tensor, "B N D"]) -> Tokens:
        prefix, table = self.timm.cls_token, self.timm.pos_embed
        if table is not None:  # of BEiT's kin that have positions besides relative ones
            prefix, x = prefix + table[:, :1], x + table[:, 1:]
        return Tokens(prefix.expand(x.shape[0], -1, -1), x)

    @staticmethod
    def _split(x: Float[Tensor, "B T D"]) -> Tokens:
        return Tokens(x[:, :1], x[:, 1:])


def refuse_beit(encoder: Backbone, what: str, fix: str) -> None:
    """Refuse a Beit where patches are left out, or what a method asks it for cannot be had."""
    if isinstance(encoder, BeitEncoder):
        raise UserError(f"a Beit (encoder.name beit_*) {what}: {fix}")
