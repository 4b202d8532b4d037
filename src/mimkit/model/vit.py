"""Encoder: a plain timm ViT that can leave out hidden patches. Images and a Mask enter, Tokens leave."""

import torch
from jaxtyping import Bool, Float
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models import Beit, ResNet, VisionTransformer
from torch import Tensor, nn

from mimkit.core.errors import UserError
from mimkit.masks.mask import Mask
from mimkit.model.backbone import Backbone, Tokens
from mimkit.model.patches import patchify, sincos_positions


def refuse_unsuitable(model: nn.Module, name: str) -> None:
    """Name the reason why hidden patches cannot be left out of this model, or return."""
    family = type(model).__name__
    if isinstance(model, VisionTransformer) and type(model.patch_embed) is PatchEmbed:
        return
    reason = "it has no plain sequence of patch tokens from which some can be left out"
    if isinstance(model, ResNet):
        reason = "a convolution sees the full grid of pixels, so no patch can be left out or replaced by a token"
    elif "Rope" in family or getattr(model, "rope", None) is not None:
        reason = "its rotary positions belong to the full grid and cannot follow left-out patches"
    elif isinstance(model, Beit):
        reason = "its relative positions belong to the full grid, so no patch can be left out"
    elif any("window" in type(module).__name__.lower() for module in model.modules()):
        reason = "its attention runs in windows over the full grid, so no patch can be left out"
    raise UserError(f"'{name}' ({family}) cannot be this encoder: {reason}; use a vit_* or deit* model of timm")


def refuse_uneven(patch: tuple[int, int], size: tuple[int, int], setting: str = "--images.size") -> None:
    """Refuse images that do not divide into patches, with the nearest size that does, for the setting that is wrong."""
    if size[0] % patch[0] or size[1] % patch[1]:
        near = tuple(max(p, round(s / p) * p) for s, p in zip(size, patch, strict=True))
        raise UserError(
            f"images of {size[0]}x{size[1]} do not divide into patches of {patch[0]}x{patch[1]}: "
            f"use {setting} {near[0]} {near[1]} or another --encoder.patch"
        )
    if size == tuple(patch):
        raise UserError(f"images of {size[0]}x{size[1]} are one patch, all or nothing: enlarge {setting}")


def initialize(module: nn.Module, kind: str = "mae") -> None:
    """MAE's initialization: Xavier-uniform linear layers (the fused qkv as one matrix), zero biases, LayerNorm 1/0.

    The patch embedding is drawn as a linear layer; class and register tokens are Normal(0, 0.02). With `mae-code` its
    bias stays as PyTorch draws that of a convolution, which the code leaves alone; `simmim` is BEiT's. Source:
    facebookresearch/mae:models_mae.py.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm):
            layer.reset_parameters()
        elif isinstance(layer, PatchEmbed):
            nn.init.xavier_uniform_(layer.proj.weight.view(layer.proj.weight.shape[0], -1))
            if layer.proj.bias is not None:
                nn.init.zeros_(layer.proj.bias)
    for name in ("cls_token", "reg_token"):
        if getattr(module, name, None) is not None:
            nn.init.normal_(getattr(module, name), std=0.02)
    if kind == "simmim":
        _initialize_as_simmim(module)
    if kind == "mae-code":  # last of all, so that the other weights are those of `mae`
        for layer in module.modules():
            if isinstance(layer, PatchEmbed) and layer.proj.bias is not None:
                bound = layer.proj.weight[0].numel() ** -0.5
                nn.init.uniform_(layer.proj.bias, -bound, bound)


def _initialize_as_simmim(module: nn.Module) -> None:
    """SimMIM's ViT, which is BEiT's (microsoft/SimMIM:models/vision_transformer.py): normal 0.02, cut at one deviation.

    What each block adds to the residual stream is divided by the root of twice its number, counted from 1.
    """
    weights = [layer.weight for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    for weight in [*weights, *(value for name, value in module.named_parameters() if name == "cls_token")]:
        nn.init.trunc_normal_(weight, std=0.02, a=-0.02, b=0.02)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name.startswith("blocks.") and name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
                weight /= (2 * (int(name.split(".")[1]) + 1)) ** 0.5


class Encoder(Backbone):
    """A timm ViT with two verbs: `embed` and `encode`. `.vit` is the model that a person leaves with."""

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.timm = vit
        # A head or attention pooling gets no gradient in pre-training, and DDP insists on one.
        vit.reset_classifier(0, "avg")
        vit.fc_norm = nn.Identity() if isinstance(vit.norm, nn.LayerNorm) else vit.fc_norm
        self.patch = tuple(vit.patch_embed.patch_size)
        self.grid = self.out_grid = tuple(vit.patch_embed.grid_size)
        self.channels = vit.patch_embed.proj.weight.shape[1]
        self.width = self.embed_width = vit.embed_dim

    def fix_positions(self) -> None:
        """Replace the position table by frozen sine-cosine positions; rows of prefix tokens are zero."""
        if self.timm.pos_embed is None:
            return
        # Prefix tokens come first in timm's table, if it has rows for them at all: patches are its last rows.
        table = torch.zeros_like(self.timm.pos_embed)
        patches = self.grid[0] * self.grid[1]
        table[:, -patches:] = sincos_positions(self.grid, self.width)
        self.timm.pos_embed = nn.Parameter(table, requires_grad=False)

    def positions(self, grid: tuple[int, int] | None = None) -> Tokens:
        """Prefix tokens with their positions, and the positions of all patches (both with batch size 1).

        Those of another `grid` than its own are resampled as timm does it: bicubic, with antialiasing.
        """
        # timm adds positions and prefix tokens in one private step; on zeros it leaves just these, whatever the model's
        # variant of it (class token with or without a position, registers).
        table = self.timm.patch_embed.proj.weight.new_zeros(1, *self.grid, self.width)
        x = self.timm._pos_embed(table if self.timm.dynamic_img_size else table.flatten(1, 2))
        prefix, patches = self._split(x)
        if grid is not None and grid != self.grid:
            patches = resample_abs_pos_embed(patches, [*grid], [*self.grid], num_prefix_tokens=0)
        return Tokens(prefix, patches)

    def embed(
        self, patches: Float[Tensor, "B N P"], mask: Mask | None = None, grid: tuple[int, int] | None = None
    ) -> Tokens:
        """Patches of `patchify` to tokens with positions, of the visible slots alone when a mask is given.

        Pixels are gathered before they are embedded: hidden patches cost nothing. `grid` is that of the patches, if
        other than the encoder's.
        """
        prefix, positions = self.positions(grid)
        if mask is not None:
            patches = mask.take(mask.repeat(patches))
            positions = mask.take(positions.expand(mask.hidden.shape[0], -1, -1))
        x = self.embed_patches(patches)
        return Tokens(prefix.expand(x.shape[0], -1, -1), x + positions)

    def fill(self, patches: Float[Tensor, "B N P"], hidden: Bool[Tensor, "B N"], token: Float[Tensor, " D"]) -> Tokens:
        prefix, positions = self.positions()
        x = self.embed_patches(patches)
        x = torch.where(hidden.unsqueeze(2), token.to(x.dtype), x)  # positions after it: a hidden patch still has one
        return Tokens(prefix.expand(x.shape[0], -1, -1), x + positions)

    def encode(self, tokens: Tokens, mask: Mask | None = None) -> Tokens:
        """Run the blocks and the final norm; a ragged mask's surplus slots are hidden from attention."""
        x = self.timm.norm_pre(torch.cat(tokens, dim=1))
        bias = self.surplus(x, mask)
        if bias is None:  # the whole sequence: timm's own way, which it may checkpoint or compile as one
            x = self.timm.blocks(x)
        else:
            for block in self.timm.blocks:
                x = block(x, attn_mask=bias)
        return self._split(self.timm.norm(x))

    def by_block(self, tokens: Tokens, mask: Mask | None = None) -> list[Tokens]:
        """What each block gives out, in their order: the residual stream, before the final norm."""
        x, outputs = self.timm.norm_pre(torch.cat(tokens, dim=1)), []
        bias = self.surplus(x, mask)
        for block in self.timm.blocks:
            x = block(x) if bias is None else block(x, attn_mask=bias)
            outputs.append(self._split(x))
        return outputs

    def surplus(self, x: Float[Tensor, "B T D"], mask: Mask | None) -> Float[Tensor, "B 1 1 T"] | None:
        """What hides the surplus slots of a ragged mask from attention."""
        if mask is None or not mask.ragged:
            return None
        # Class and register tokens are always seen.
        prefix = mask.padding.new_zeros(x.shape[0], self.timm.num_prefix_tokens)
        surplus = torch.cat([prefix, mask.padding], dim=1)
        return torch.zeros_like(surplus, dtype=x.dtype).masked_fill(surplus, float("-inf"))[:, None, None, :]

    def through(self, tokens: Tokens, blocks: int) -> Tokens:
        """What the first so many blocks make of all tokens: the residual stream, before the final norm."""
        x = self.timm.norm_pre(torch.cat(tokens, dim=1))
        for block in self.timm.blocks[:blocks]:
            x = block(x)
        return self._split(x)

    def forward(self, images: Float[Tensor, "B C H W"], mask: Mask | None = None) -> Tokens:
        """Latents of all patches, bit for bit timm's `forward_features`; with a mask, of the visible slots.

        Images of another size than the encoder's are looked at with resampled positions.
        """
        height, width = images.shape[2:]
        if mask is None and (self.timm.dynamic_img_size or (height, width) == self.size):
            return self._split(self.timm.forward_features(images))
        refuse_uneven(self.patch, (height, width), "view.size")
        # Small crops: timm's own forward would refuse their size.
        grid = (height // self.patch[0], width // self.patch[1])
        return self.encode(self.embed(patchify(images, self.patch), mask, grid), mask)

    def _split(self, x: Float[Tensor, "B T D"]) -> Tokens:
        prefix = self.timm.num_prefix_tokens
        return Tokens(x[:, :prefix], x[:, prefix:])
