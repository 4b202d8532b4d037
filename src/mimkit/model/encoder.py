"""Encoder: a plain timm ViT that can leave out hidden patches. Images and a Mask enter, Tokens leave."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models import ResNet, SwinTransformer, SwinTransformerV2, VisionTransformer, is_model_in_modules
from torch import Tensor, nn

from mimkit.errors import UserError, at_least, unknown
from mimkit.masks.mask import Mask
from mimkit.model.patches import patchify, sincos_positions

SIZES = ("patch", "width", "depth", "heads")  # fields of EncoderConfig that change a plain ViT


class Tokens(NamedTuple):
    """A sequence in two parts, so that no index of a patch ever counts class or register tokens."""

    prefix: Float[Tensor, "B P D"]
    patches: Float[Tensor, "B V D"]


@dataclass(kw_only=True, slots=True)
class EncoderConfig:
    """Which ViT, Swin or ResNet to train: a timm architecture and what to change about it."""

    name: str = "vit_base_patch16_224"
    """Any plain ViT of timm; for methods that leave no patches out, as SimMIM, also swin_* and swinv2_*; for methods
    without masks, as SimCLR, also resnet* and its kin."""
    patch: int | None = None
    """Side of a patch in pixels; by default the architecture's own."""
    width: int | None = None
    """Embedding width, if other than the architecture's."""
    depth: int | None = None
    """Number of blocks, if other than the architecture's."""
    heads: int | None = None
    """Attention heads, if other than the architecture's."""
    positions: str = "sincos"
    """`sincos`: fixed 2-D sine-cosine (MAE); `learned`: the architecture's own trainable table. Swins and
    ResNets have none."""
    weights: str | None = None
    """Start from released weights: `timm` (those timm has under this name), a folder or a file (see docs)."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """More arguments for `timm.create_model`, for recipes in Python."""

    def timm_args(self, size: tuple[int, int], channels: int) -> dict[str, Any]:
        """The arguments for `timm.create_model`; all survive JSON."""
        own = dict(patch_size=self.patch, embed_dim=self.width, depth=self.depth, num_heads=self.heads)
        if is_convolutional(self.name):
            if given := [f"--encoder.{name}" for name in SIZES if getattr(self, name) is not None]:
                raise UserError(
                    f"'{self.name}' has no {given[0].rpartition('.')[2]} to set: leave {', '.join(given)} away, choose "
                    "another resnet*, or give model_args in a recipe"
                )
            return dict(in_chans=channels, num_classes=0, global_pool="avg") | self.model_args
        if is_windowed(self.name):
            if self.depth or self.heads:
                raise UserError(
                    f"'{self.name}' has several stages: give model_args depths and num_heads, one number a stage each, "
                    "in a recipe instead of --encoder.depth and --encoder.heads"
                )
            # timm's default is a drop path of 0.1, which is for supervised training.
            args = dict(img_size=list(size), in_chans=channels, num_classes=0, global_pool="avg", drop_path_rate=0.0)
            return args | {k: v for k, v in own.items() if v is not None} | self.model_args
        # MAE evaluates the normalised tokens: `norm` stays in the encoder instead of moving behind the pooling.
        args = dict(img_size=list(size), in_chans=channels, num_classes=0, global_pool="avg", fc_norm=False)
        return args | {k: v for k, v in own.items() if v is not None} | self.model_args

    def build(self, size: tuple[int, int], channels: int) -> "Backbone":
        """An encoder for images of `size` (height, width) with `channels`.

        Weights of ViTs by MAE's initialisation, those of Swins and ResNets by timm's: Swin's own, and He's with a last
        scale of zero in each residual block.
        """
        if not timm.is_model(self.name):
            raise unknown("timm model", self.name, timm.list_models(), see="Plain ViTs: vit_*, deit*.")
        if self.positions not in ("sincos", "learned"):
            raise unknown("kind of positions", self.positions, ["sincos", "learned"])
        for name in SIZES:
            at_least(1, **{f"encoder.{name}": getattr(self, name)})
        args = self.timm_args(size, channels)
        windowed, convolutional = is_windowed(self.name), is_convolutional(self.name)
        plain = not (windowed or convolutional)
        try:  # of ViTs, timm draws weights that are drawn anew below
            with torch.random.fork_rng(devices=[], enabled=plain):
                vit = timm.create_model(self.name, pretrained=False, **args)
        except (TypeError, AssertionError, RuntimeError) as error:
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
            if plain:
                with torch.device("meta"):
                    refuse_unsuitable(timm.create_model(self.name), self.name)
            change = "change --encoder.patch, --encoder.width, --encoder.heads or --images.size"
            change = "change model_args" if convolutional else change
            raise UserError(f"timm cannot build '{self.name}' ({message}): {change}") from error
        if windowed:
            from mimkit.model.windowed import WindowedEncoder  # which imports this file

            assert isinstance(vit, (SwinTransformer, SwinTransformerV2))
            return WindowedEncoder(vit)
        if convolutional:
            from mimkit.model.convolutional import ConvolutionalEncoder  # which imports this file

            assert isinstance(vit, ResNet)
            return ConvolutionalEncoder(vit, size)
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


def is_windowed(name: str) -> bool:
    """Whether timm's architecture of this name is a Swin or a SwinV2."""
    return name.startswith(("swin_", "swinv2_")) and not name.startswith("swinv2_cr")


def is_convolutional(name: str) -> bool:
    """Whether timm's architecture of this name is of its `resnet.py`: ResNets, ResNeXts and kin, of one class."""
    return is_model_in_modules(name, ["resnet"])


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
    elif any("window" in type(part).__name__.lower() for part in model.modules()):
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


class Backbone(nn.Module):
    """What every encoder has, whether it can leave patches out or not."""

    vit: Any
    """The timm model that a person leaves with."""
    patch: tuple[int, int]
    """Height and width of a patch in pixels."""
    grid: tuple[int, int]
    """Rows and columns of the patches that are embedded, which masks hide."""
    out_grid: tuple[int, int]
    """Rows and columns of the tokens that leave."""
    channels: int
    """Of the images."""
    embed_width: int
    """Of embedded patches."""
    width: int
    """Of the tokens that leave."""
    mean: tuple[float, ...] | None = None
    """How the images were normalised, per channel, of pixels in [0, 1]; with `std`."""
    std: tuple[float, ...] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.grid[0] * self.patch[0], self.grid[1] * self.patch[1]

    def embed_patches(self, patches: Float[Tensor, "B V P"]) -> Float[Tensor, "B V D"]:
        """Patches of `patchify` through timm's patch embedding, before positions."""
        embedding = self.vit.patch_embed
        weight = embedding.proj.weight.permute(0, 2, 3, 1).flatten(1)  # (row, column, channel), as patchify has it
        return embedding.norm(F.linear(patches, weight, embedding.proj.bias))

    def fill(self, patches: Float[Tensor, "B N P"], hidden: Bool[Tensor, "B N"], token: Float[Tensor, " D"]) -> Tokens:
        """The full sequence: all patches embedded, `token` in place of hidden ones, then positions."""
        raise NotImplementedError(f"{type(self).__name__} is no encoder until it defines fill")

    def encode(self, tokens: Tokens) -> Tokens:
        """Run the blocks and the final norm."""
        raise NotImplementedError(f"{type(self).__name__} is no encoder until it defines encode")


class Encoder(Backbone):
    """A timm ViT with two verbs: `embed` and `encode`. `.vit` is the model that a person leaves with."""

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.vit = vit
        # A head or attention pooling gets no gradient in pre-training, and DDP insists on one.
        vit.reset_classifier(0, "avg")
        vit.fc_norm = nn.Identity() if isinstance(vit.norm, nn.LayerNorm) else vit.fc_norm
        self.patch = tuple(vit.patch_embed.patch_size)
        self.grid = self.out_grid = tuple(vit.patch_embed.grid_size)
        self.channels = vit.patch_embed.proj.weight.shape[1]
        self.width = self.embed_width = vit.embed_dim

    def fix_positions(self) -> None:
        """Replace the position table by frozen sine-cosine positions; rows of prefix tokens are zero."""
        if self.vit.pos_embed is None:
            return
        table = torch.zeros_like(self.vit.pos_embed)
        patches = self.grid[0] * self.grid[1]
        table[:, -patches:] = sincos_positions(self.grid, self.width)
        self.vit.pos_embed = nn.Parameter(table, requires_grad=False)

    def positions(self, grid: tuple[int, int] | None = None) -> Tokens:
        """Prefix tokens with their positions, and the positions of all patches (both with batch size 1).

        Those of another `grid` than its own are resampled as timm does it: bicubic, with antialiasing.
        """
        table = self.vit.patch_embed.proj.weight.new_zeros(1, *self.grid, self.width)
        x = self.vit._pos_embed(table if self.vit.dynamic_img_size else table.flatten(1, 2))
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
        x = torch.where(hidden.unsqueeze(2), token.to(x.dtype), x)
        return Tokens(prefix.expand(x.shape[0], -1, -1), x + positions)

    def encode(self, tokens: Tokens, mask: Mask | None = None) -> Tokens:
        """Run the blocks and the final norm; a ragged mask's surplus slots are hidden from attention."""
        x = self.vit.norm_pre(torch.cat(tokens, dim=1))
        bias = self._surplus(x, mask)
        if bias is None:
            x = self.vit.blocks(x)
        else:
            for block in self.vit.blocks:
                x = block(x, attn_mask=bias)
        return self._split(self.vit.norm(x))

    def by_block(self, tokens: Tokens, mask: Mask | None = None) -> list[Tokens]:
        """What each block gives out, in their order: the residual stream, before the final norm."""
        x, outputs = self.vit.norm_pre(torch.cat(tokens, dim=1)), []
        bias = self._surplus(x, mask)
        for block in self.vit.blocks:
            x = block(x) if bias is None else block(x, attn_mask=bias)
            outputs.append(self._split(x))
        return outputs

    def _surplus(self, x: Float[Tensor, "B T D"], mask: Mask | None) -> Float[Tensor, "B 1 1 T"] | None:
        """What hides the surplus slots of a ragged mask from attention."""
        if mask is None or not mask.ragged:
            return None
        prefix = mask.padding.new_zeros(x.shape[0], self.vit.num_prefix_tokens)
        seen = torch.cat([prefix, mask.padding], dim=1)
        return torch.zeros_like(seen, dtype=x.dtype).masked_fill(seen, float("-inf"))[:, None, None, :]

    def through(self, tokens: Tokens, blocks: int) -> Tokens:
        """What the first so many blocks make of all tokens: the residual stream, before the final norm."""
        x = self.vit.norm_pre(torch.cat(tokens, dim=1))
        for block in self.vit.blocks[:blocks]:
            x = block(x)
        return self._split(x)

    def forward(self, images: Float[Tensor, "B C H W"], mask: Mask | None = None) -> Tokens:
        """Latents of all patches, bit for bit timm's `forward_features`; with a mask, of the visible slots.

        Images of another size than the encoder's are looked at with resampled positions.
        """
        height, width = images.shape[2:]
        if mask is None and (self.vit.dynamic_img_size or (height, width) == self.size):
            return self._split(self.vit.forward_features(images))
        refuse_uneven(self.patch, (height, width), "view.size")
        grid = (height // self.patch[0], width // self.patch[1])
        return self.encode(self.embed(patchify(images, self.patch), mask, grid), mask)

    def _split(self, x: Float[Tensor, "B T D"]) -> Tokens:
        prefix = self.vit.num_prefix_tokens
        return Tokens(x[:, :prefix], x[:, prefix:])
