"""Encoder: a plain timm ViT that can leave out hidden patches. Images and a Mask enter, Tokens leave."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import PatchEmbed
from timm.models import VisionTransformer
from torch import Tensor, nn

from mimkit.errors import UserError, at_least, unknown
from mimkit.masks.mask import Mask
from mimkit.model.patches import patchify, sincos_positions


class Tokens(NamedTuple):
    """A sequence in two parts, so that no index of a patch ever counts class or register tokens."""

    prefix: Float[Tensor, "B P D"]
    patches: Float[Tensor, "B V D"]


@dataclass(kw_only=True, slots=True)
class EncoderConfig:
    """Which ViT to train: a timm architecture and what to change about it."""

    name: str = "vit_base_patch16_224"
    """Any plain ViT of timm."""
    patch: int | None = None
    """Side of a patch in pixels; by default the architecture's own."""
    width: int | None = None
    """Embedding width, if other than the architecture's."""
    depth: int | None = None
    """Number of blocks, if other than the architecture's."""
    heads: int | None = None
    """Attention heads, if other than the architecture's."""
    positions: str = "sincos"
    """`sincos`: fixed 2-D sine-cosine (MAE); `learned`: the architecture's own trainable table."""
    weights: str | None = None
    """Start from released weights: `timm` (those timm has under this name), a folder or a file (see docs)."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """More arguments for `timm.create_model`, for recipes in Python."""

    def timm_args(self, size: tuple[int, int], channels: int) -> dict[str, Any]:
        """The arguments for `timm.create_model`; all survive JSON."""
        own = dict(patch_size=self.patch, embed_dim=self.width, depth=self.depth, num_heads=self.heads)
        # MAE evaluates the normalised tokens: `norm` stays in the encoder instead of moving behind the pooling.
        args = dict(img_size=list(size), in_chans=channels, num_classes=0, global_pool="avg", fc_norm=False)
        return args | {k: v for k, v in own.items() if v is not None} | self.model_args

    def build(self, size: tuple[int, int], channels: int) -> "Encoder":
        """An encoder for images of `size` (height, width) with `channels`; weights by MAE's initialisation."""
        if not timm.is_model(self.name):
            raise unknown("timm model", self.name, timm.list_models(), see="Plain ViTs: vit_*, deit*.")
        if self.positions not in ("sincos", "learned"):
            raise unknown("kind of positions", self.positions, ["sincos", "learned"])
        for name in ("patch", "width", "depth", "heads"):
            at_least(1, **{f"encoder.{name}": getattr(self, name)})
        args = self.timm_args(size, channels)
        try:
            with torch.random.fork_rng(devices=[]):  # timm draws weights that are drawn anew below
                vit = timm.create_model(self.name, pretrained=False, **args)
        except (TypeError, AssertionError, RuntimeError) as error:
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
            with torch.device("meta"):
                refuse_unsuitable(timm.create_model(self.name), self.name)
            change = "change --encoder.patch, --encoder.width, --encoder.heads or --images.size"
            raise UserError(f"timm cannot build '{self.name}' ({message}): {change}") from error
        refuse_unsuitable(vit, self.name)
        assert isinstance(vit, VisionTransformer)
        refuse_uneven(vit.patch_embed.patch_size, size)
        if self.positions == "sincos" and vit.embed_dim % 4:
            raise UserError(f"encoder.width {vit.embed_dim} must be divisible by 4 for sine-cosine positions")
        encoder = Encoder(vit)
        initialise(encoder.vit)
        if self.positions == "sincos":
            encoder.fix_positions()
        return encoder


def refuse_unsuitable(model: nn.Module, name: str) -> None:
    """Name the reason why hidden patches cannot be left out of this model, or return."""
    family = type(model).__name__
    if isinstance(model, VisionTransformer) and type(model.patch_embed) is PatchEmbed:
        return
    reason = "it has no plain sequence of patch tokens from which some can be left out"
    if "Rope" in family or getattr(model, "rope", None) is not None:
        reason = "its rotary positions belong to the full grid and cannot follow left-out patches"
    elif any("window" in type(part).__name__.lower() for part in model.modules()):
        reason = "its attention runs in windows over the full grid, so no patch can be left out"
    raise UserError(f"'{name}' ({family}) cannot be this encoder: {reason}; use a vit_* or deit* model of timm")


def refuse_uneven(patch: tuple[int, int], size: tuple[int, int]) -> None:
    """Refuse images that do not divide into patches, with the nearest size that does."""
    if size[0] % patch[0] or size[1] % patch[1]:
        near = tuple(max(p, round(s / p) * p) for s, p in zip(size, patch, strict=True))
        raise UserError(
            f"images of {size[0]}x{size[1]} do not divide into patches of {patch[0]}x{patch[1]}: "
            f"use --images.size {near[0]} {near[1]} or another --encoder.patch"
        )
    if size == tuple(patch):
        raise UserError(f"images of {size[0]}x{size[1]} are one patch, all or nothing: enlarge --images.size")


def initialise(module: nn.Module) -> None:
    """MAE's initialisation: Xavier-uniform linear layers (the fused qkv as one matrix), zero biases, LayerNorm 1/0.

    The patch embedding is drawn as a linear layer; class and register tokens are Normal(0, 0.02). Source:
    facebookresearch/mae:models_mae.py.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            part.reset_parameters()
        elif isinstance(part, PatchEmbed):
            nn.init.xavier_uniform_(part.proj.weight.view(part.proj.weight.shape[0], -1))
            if part.proj.bias is not None:
                nn.init.zeros_(part.proj.bias)
    for name in ("cls_token", "reg_token"):
        if getattr(module, name, None) is not None:
            nn.init.normal_(getattr(module, name), std=0.02)


class Encoder(nn.Module):
    """A timm ViT with two verbs: `embed` and `encode`. `.vit` is the model that a person leaves with."""

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.vit = vit
        # A head or attention pooling gets no gradient in pre-training, and DDP insists on one.
        vit.reset_classifier(0, "avg")
        vit.fc_norm = nn.Identity() if isinstance(vit.norm, nn.LayerNorm) else vit.fc_norm
        self.patch: tuple[int, int] = tuple(vit.patch_embed.patch_size)
        self.grid: tuple[int, int] = tuple(vit.patch_embed.grid_size)
        self.channels: int = vit.patch_embed.proj.weight.shape[1]
        self.width: int = vit.embed_dim
        self.mean: tuple[float, ...] | None = None  # how the images were normalised; a teacher wants to know
        self.std: tuple[float, ...] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.grid[0] * self.patch[0], self.grid[1] * self.patch[1]

    def fix_positions(self) -> None:
        """Replace the position table by frozen sine-cosine positions; rows of prefix tokens are zero."""
        if self.vit.pos_embed is None:
            return
        table = torch.zeros_like(self.vit.pos_embed)
        patches = self.grid[0] * self.grid[1]
        table[:, -patches:] = sincos_positions(self.grid, self.width)
        self.vit.pos_embed = nn.Parameter(table, requires_grad=False)

    def positions(self) -> Tokens:
        """Prefix tokens with their positions, and the positions of all patches (both with batch size 1)."""
        table = self.vit.patch_embed.proj.weight.new_zeros(1, *self.grid, self.width)
        x = self.vit._pos_embed(table if self.vit.dynamic_img_size else table.flatten(1, 2))
        return self._split(x)

    def embed(self, patches: Float[Tensor, "B N P"], mask: Mask | None = None) -> Tokens:
        """Patches of `patchify` to tokens with positions, of the visible slots alone when a mask is given.

        Pixels are gathered before they are embedded: hidden patches cost nothing.
        """
        prefix, positions = self.positions()
        if mask is not None:
            patches = mask.take(mask.repeat(patches))
            positions = mask.take(positions.expand(mask.hidden.shape[0], -1, -1))
        embedding = self.vit.patch_embed
        weight = embedding.proj.weight.permute(0, 2, 3, 1).flatten(1)  # (row, column, channel), as patchify has it
        x = embedding.norm(F.linear(patches, weight, embedding.proj.bias))
        return Tokens(prefix.expand(x.shape[0], -1, -1), x + positions)

    def encode(self, tokens: Tokens, mask: Mask | None = None) -> Tokens:
        """Run the blocks and the final norm; a ragged mask's surplus slots are hidden from attention."""
        x = self.vit.norm_pre(torch.cat(tokens, dim=1))
        if mask is not None and mask.ragged:
            seen = torch.cat([mask.padding.new_zeros(x.shape[0], tokens.prefix.shape[1]), mask.padding], dim=1)
            bias = torch.zeros_like(seen, dtype=x.dtype).masked_fill(seen, float("-inf"))[:, None, None, :]
            for block in self.vit.blocks:
                x = block(x, attn_mask=bias)
        else:
            x = self.vit.blocks(x)
        return self._split(self.vit.norm(x))

    def through(self, tokens: Tokens, blocks: int) -> Tokens:
        """What the first so many blocks make of all tokens: the residual stream, before the final norm."""
        x = self.vit.norm_pre(torch.cat(tokens, dim=1))
        for block in self.vit.blocks[:blocks]:
            x = block(x)
        return self._split(x)

    def forward(self, images: Float[Tensor, "B C H W"], mask: Mask | None = None) -> Tokens:
        """Latents of all patches, bit for bit timm's `forward_features`; with a mask, of the visible slots."""
        if mask is None:
            return self._split(self.vit.forward_features(images))
        return self.encode(self.embed(patchify(images, self.patch), mask), mask)

    def _split(self, x: Float[Tensor, "B T D"]) -> Tokens:
        prefix = self.vit.num_prefix_tokens
        return Tokens(x[:, :prefix], x[:, prefix:])
