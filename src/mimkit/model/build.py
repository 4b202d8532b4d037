"""Build an encoder: a timm name and what to change about it enter, an encoder with fresh weights leaves."""

from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from timm.models import Beit, ResNet, SwinTransformer, SwinTransformerV2, VisionTransformer, is_model_in_modules

from mimkit.core.errors import UserError, at_least, unknown
from mimkit.model.backbone import Backbone
from mimkit.model.vit import Encoder, initialize, refuse_uneven, refuse_unsuitable

SIZES = ("patch", "width", "depth", "heads")  # fields of EncoderConfig that change a plain ViT

INITIALIZATIONS = ("mae", "mae-code", "simmim")


@dataclass(kw_only=True, slots=True)
class EncoderConfig:
    """Which ViT, Swin or ResNet to train: a timm architecture and what to change about it."""

    name: str = "vit_base_patch16_224"
    """Any plain ViT of timm; for methods that leave no patches out, as SimMIM, also swin_* and swinv2_*, and for SimMIM
    and data2vec beit_*; for methods without masks, as SimCLR, also resnet* and its kin."""
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
    initialization: str = "mae"
    """First weights of ViTs: `mae`; `mae-code`, in which the bias of the patch embedding is not 0; or `simmim`,
    BEiT's truncated normal with smaller residuals in later blocks."""
    weights: str | None = None
    """Start from released weights: `timm` (those timm has under this name), a folder or a file (see docs)."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """More arguments for `timm.create_model`, for recipes in Python."""

    def timm_args(self, size: tuple[int, int], channels: int) -> dict[str, Any]:
        """The arguments for `timm.create_model`; all survive JSON."""
        own = dict(patch_size=self.patch, embed_dim=self.width, depth=self.depth, num_heads=self.heads)
        if is_convolutional(self.name):
            flags = [f"--encoder.{name}" for name in SIZES if getattr(self, name) is not None]
            if flags:
                raise UserError(
                    f"'{self.name}' has no {flags[0].rpartition('.')[2]} to set: leave {', '.join(flags)} away, choose "
                    "another resnet*, or give model_args in a recipe"
                )
            # What a recipe gives in model_args comes last and wins.
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
        if is_beit(self.name):
            args = dict(img_size=list(size), in_chans=channels, num_classes=0, global_pool="avg", use_fc_norm=False)
            return args | {k: v for k, v in own.items() if v is not None} | self.model_args
        # MAE evaluates the normalized tokens: `norm` stays in the encoder instead of moving behind the pooling.
        args = dict(img_size=list(size), in_chans=channels, num_classes=0, global_pool="avg", fc_norm=False)
        return args | {k: v for k, v in own.items() if v is not None} | self.model_args

    def build(self, size: tuple[int, int], channels: int) -> "Backbone":
        """An encoder for images of `size` (height, width) with `channels`.

        Weights of ViTs by MAE's initialization, those of Swins and ResNets by timm's: Swin's own, and He's with a last
        scale of zero in each residual block.
        """
        if not timm.is_model(self.name):
            raise unknown("timm model", self.name, timm.list_models(), see="Plain ViTs: vit_*, deit*.")
        if self.positions not in ("sincos", "learned"):
            raise unknown("kind of positions", self.positions, ["sincos", "learned"])
        if self.initialization not in INITIALIZATIONS:
            raise unknown("initialization", self.initialization, INITIALIZATIONS)
        for name in SIZES:
            at_least(1, **{f"encoder.{name}": getattr(self, name)})
        args = self.timm_args(size, channels)
        windowed, convolutional = is_windowed(self.name), is_convolutional(self.name)
        plain = not (windowed or convolutional)
        try:  # of ViTs, timm draws weights that are drawn anew below
            # So weights depend on the seed alone, not on how many numbers timm drew for those that are thrown away.
            with torch.random.fork_rng(devices=[], enabled=plain):
                vit = timm.create_model(self.name, pretrained=False, **args)
        except (TypeError, AssertionError, RuntimeError) as error:
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
            if plain:  # a model of another family may be the reason: without weights, it tells in no time
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
        if is_beit(self.name):
            from mimkit.model.beit import BeitEncoder

            assert isinstance(vit, Beit)
            refuse_uneven(vit.patch_embed.patch_size, size)
            initialize(vit, self.initialization)
            return BeitEncoder(vit)
        refuse_unsuitable(vit, self.name)
        assert isinstance(vit, VisionTransformer)
        refuse_uneven(vit.patch_embed.patch_size, size)
        if self.positions == "sincos" and vit.embed_dim % 4:
            raise UserError(f"encoder.width {vit.embed_dim} must be divisible by 4 for sine-cosine positions")
        encoder = Encoder(vit)
        initialize(encoder.timm, self.initialization)
        if self.positions == "sincos":
            encoder.fix_positions()
        return encoder


def is_windowed(name: str) -> bool:
    """Whether timm's architecture of this name is a Swin or a SwinV2."""
    return name.startswith(("swin_", "swinv2_")) and not name.startswith("swinv2_cr")


def is_beit(name: str) -> bool:
    """Whether timm's architecture of this name is of its `beit.py`: BEiT, BEiT v2 and 3."""
    return is_model_in_modules(name, ["beit"])


def is_convolutional(name: str) -> bool:
    """Whether timm's architecture of this name is of its `resnet.py`: ResNets, ResNeXts and kin, of one class."""
    return is_model_in_modules(name, ["resnet"])
