"""Windowed encoder: a timm Swin or SwinV2, whose patches stay on their grid. Images or patches enter, Tokens leave."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from timm.models import SwinTransformer, SwinTransformerV2
from torch import Tensor

from mimkit.core.errors import UserError
from mimkit.model.backbone import Backbone, Tokens


class WindowedEncoder(Backbone):
    """A sibling of `Encoder` for attention in shifted windows: no patch can be left out, a token stands for it.

    Masks hide patches of `grid`; merging leaves a coarser `out_grid` of wider tokens. There are no prefix tokens.

    Raises:
        UserError: the images do not divide into the patches that the last stage has merged.
    """

    def __init__(self, vit: SwinTransformer | SwinTransformerV2) -> None:
        super().__init__()
        self.timm = vit
        vit.reset_classifier(0, "avg")  # a head gets no gradient in pre-training, and DDP insists on one
        embedding: Any = vit.patch_embed
        self.patch = tuple(embedding.patch_size)
        self.grid = tuple(embedding.grid_size)
        self.embed_width, self.channels = embedding.proj.weight.shape[:2]
        self.width = vit.num_features
        # Each stage but the first merges 2 x 2 tokens into one.
        merged = 2 ** (vit.num_layers - 1)
        size, cell = tuple(embedding.img_size), (self.patch[0] * merged, self.patch[1] * merged)
        if size[0] % cell[0] or size[1] % cell[1]:
            near = tuple(max(c, round(s / c) * c) for s, c in zip(size, cell, strict=True))
            raise UserError(
                f"images of {size[0]}x{size[1]} do not divide into the {cell[0]}x{cell[1]} pixels of a last token of "
                f"this encoder: use --images.size {near[0]} {near[1]}"
            )
        self.out_grid = (self.grid[0] // merged, self.grid[1] // merged)

    def embed(self, patches: Float[Tensor, "B N P"]) -> Tokens:
        """All patches of `patchify` to tokens."""
        return self._tokens(self.embed_patches(patches))

    def fill(self, patches: Float[Tensor, "B N P"], hidden: Bool[Tensor, "B N"], token: Float[Tensor, " D"]) -> Tokens:
        x = self.embed_patches(patches)
        return self._tokens(torch.where(hidden.unsqueeze(2), token.to(x.dtype), x))

    def encode(self, tokens: Tokens) -> Tokens:
        """Run the stages and the final norm: tokens of `out_grid`, row-major."""
        x = self.timm.layers(tokens.patches.unflatten(1, self.grid))
        return self._tokens(self.timm.norm(x).flatten(1, 2))

    def forward(self, images: Float[Tensor, "B C H W"]) -> Tokens:
        """Tokens of whole images, bit for bit timm's `forward_features`."""
        return self._tokens(self.timm.forward_features(images).flatten(1, 2))

    @staticmethod
    def _tokens(x: Float[Tensor, "B N D"]) -> Tokens:
        return Tokens(x[:, :0], x)
