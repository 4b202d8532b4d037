"""Pyramids: any encoder and images enter, maps of several strides leave, the finest first.

A pyramid has layers of its own, but not the encoder, which a method holds.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from mimkit.core.errors import UserError
from mimkit.model.backbone import Backbone, Tokens
from mimkit.model.convolutional import ConvolutionalEncoder
from mimkit.model.norms import Norm, norm_of
from mimkit.model.vit import Encoder
from mimkit.model.windowed import WindowedEncoder
from mimkit.model.windows import block_outputs, refuse_window

Map = Float[Tensor, "B _ _ _"]


class Pyramid(nn.Module):
    """Base of all pyramids."""

    strides: tuple[float, ...]
    """Pixels from one place of a map to the next, of each map."""
    widths: tuple[int, ...]
    """Channels of each map."""
    window: int | None = None
    """Side in patches of the windows in which the blocks of a ViT attend; None: everywhere."""
    final_norm: bool = False
    """Whether maps have passed the final norm of the encoder."""

    def forward(self, encoder: Any, images: Float[Tensor, "B C H W"]) -> list[Map]:
        """The maps of images."""
        raise NotImplementedError(f"{type(self).__name__} is no pyramid until it defines forward")

    def freeze_unused(self, encoder: Backbone) -> None:
        """Freeze the weights of the encoder that no map depends on: they get no gradient, and DDP insists on one."""
        model = encoder.timm
        if not self.final_norm and not isinstance(encoder, ConvolutionalEncoder):
            model.norm.requires_grad_(False)
            if isinstance(encoder, Encoder):
                model.fc_norm.requires_grad_(False)
        if self.window is not None:
            for name, value in model.named_parameters():
                if name in ("cls_token", "reg_token"):
                    value.requires_grad_(False)


class SimplePyramid(Pyramid):
    """Five maps from the last block of a plain ViT (Li et al. 2022, ViTDet; facebookresearch/detectron2).

    A patch of p pixels gives strides p/4, p/2, p, 2p, and 4p by leaving out every other place of 2p.

    Raises:
        UserError: patches are no squares of a power of two, 4 or more, of which boxes need whole strides; or windows
            do not tile the picture.
    """

    def __init__(self, encoder: Encoder, channels: int = 256, window: int | None = None) -> None:
        super().__init__()
        side, width = encoder.patch[0], encoder.width
        refuse_patch(encoder.patch)
        if window is not None:
            refuse_window(window, encoder.grid)
        self.window = window
        self.strides = (side / 4, side / 2, side, 2 * side, 4 * side)
        self.widths = (channels,) * 5
        twice = [
            nn.ConvTranspose2d(width, width // 2, 2, 2),
            LayerNorm2d(width // 2),
            nn.GELU(),
            nn.ConvTranspose2d(width // 2, width // 4, 2, 2),
        ]
        once = [nn.ConvTranspose2d(width, width // 2, 2, 2)]
        resampled = [(twice, width // 4), (once, width // 2), ([], width), ([nn.MaxPool2d(2)], width)]
        self.levels = nn.ModuleList(
            nn.Sequential(
                *layers,
                nn.Conv2d(outputs, channels, 1, bias=False),
                LayerNorm2d(channels),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                LayerNorm2d(channels),
            )
            for layers, outputs in resampled
        )

    def forward(self, encoder: Encoder, images: Float[Tensor, "B C H W"]) -> list[Map]:
        (tokens,) = block_outputs(encoder, images, [len(encoder.timm.blocks) - 1], self.window)
        last = as_map(tokens.patches, encoder, images)
        maps = [level(last) for level in self.levels]
        return [*maps, F.max_pool2d(maps[-1], 1, 2)]


class TappedPyramid(Pyramid):
    """Four maps from four blocks of a plain ViT, at a third, a half, two thirds and the end of them, for UperNet.

    These are blocks 3, 5, 7 and 11 of 12, as BEiT and MAE take them (open-mmlab/mmsegmentation:mae). A patch of p
    pixels gives strides p/4, p/2, p, 2p.
    """

    def __init__(self, encoder: Encoder, norm: Norm = "group", window: int | None = None) -> None:
        super().__init__()
        depth, width, side = len(encoder.timm.blocks), encoder.width, encoder.patch[0]
        if window is not None:
            refuse_window(window, encoder.grid)
        self.window = window
        self.blocks = [max(0, round(depth * share) - 1) for share in (1 / 3, 1 / 2, 2 / 3, 1)]
        self.strides, self.widths = (side / 4, side / 2, side, 2 * side), (width,) * 4
        once = nn.ConvTranspose2d(width, width, 2, 2)
        twice = [nn.ConvTranspose2d(width, width, 2, 2), norm_of(norm, width), nn.GELU()]
        twice.append(nn.ConvTranspose2d(width, width, 2, 2))
        self.levels = nn.ModuleList([nn.Sequential(*twice), once, nn.Identity(), nn.MaxPool2d(2)])

    def forward(self, encoder: Encoder, images: Float[Tensor, "B C H W"]) -> list[Map]:
        outputs = block_outputs(encoder, images, self.blocks, self.window)
        maps = [as_map(tokens.patches, encoder, images) for tokens in outputs]
        return [level(x) for level, x in zip(self.levels, maps, strict=True)]


class StagePyramid(Pyramid):
    """The stages of a Swin, each behind a LayerNorm of its own, or of a ResNet, as they are."""

    def __init__(self, encoder: Backbone) -> None:
        super().__init__()
        stages = [stage for stage in encoder.timm.feature_info if stage["module"].startswith("layer")]
        self.widths = tuple(stage["num_chs"] for stage in stages)
        self.strides = tuple(float(stage["reduction"]) for stage in stages)
        # The first map of a ResNet is that of its stem.
        self.indices = range(5)[1:] if isinstance(encoder, ConvolutionalEncoder) else range(len(stages))
        windowed = isinstance(encoder, WindowedEncoder)
        self.norms = nn.ModuleList(LayerNorm2d(width) if windowed else nn.Identity() for width in self.widths)

    def forward(self, encoder: Backbone, images: Float[Tensor, "B C H W"]) -> list[Map]:
        maps = encoder.timm.forward_intermediates(images, indices=list(self.indices), intermediates_only=True)
        return [norm(x) for norm, x in zip(self.norms, maps, strict=True)]


class FeaturePyramid(Pyramid):
    """torchvision's feature pyramid network on the stages of a Swin or a ResNet, and every other place of the last."""

    def __init__(self, encoder: Backbone, channels: int = 256) -> None:
        super().__init__()
        self.stages = StagePyramid(encoder)
        self.strides = (*self.stages.strides, 2 * self.stages.strides[-1])
        self.widths = (channels,) * len(self.strides)
        self.network = FeaturePyramidNetwork(list(self.stages.widths), channels)

    def forward(self, encoder: Backbone, images: Float[Tensor, "B C H W"]) -> list[Map]:
        stages = self.stages(encoder, images)
        maps = list(self.network(OrderedDict((str(number), x) for number, x in enumerate(stages))).values())
        return [*maps, F.max_pool2d(maps[-1], 1, 2)]


class LastMaps(Pyramid):
    """The last blocks of a ViT, each behind its final norm, or the last map of a Swin or a ResNet: without own layers.

    Args:
        count: of the last blocks; Swins and ResNets have one map.
        class_token: the class token stands behind each patch token, which is then twice as wide.

    Raises:
        UserError: the encoder has no class token, or fewer blocks.
    """

    final_norm = True

    def __init__(self, encoder: Backbone, count: int = 1, class_token: bool = False) -> None:
        super().__init__()
        vit = isinstance(encoder, Encoder)
        depth = len(encoder.timm.blocks) if vit else 1
        if not 1 <= count <= depth:
            raise UserError(f"--method.blocks {count}: this encoder has maps of 1 to {depth}")
        if class_token and not (vit and encoder.timm.cls_token is not None):
            raise UserError("this encoder has no class token: give --method.class-token False")
        self.count, self.class_token = count, class_token
        self.strides = (encoder.size[0] / encoder.out_grid[0],) * count
        self.widths = (encoder.width * (2 if class_token else 1),) * count

    def forward(self, encoder: Backbone, images: Float[Tensor, "B C H W"]) -> list[Map]:
        if not isinstance(encoder, Encoder):
            x = encoder.timm.forward_features(images)
            return [x.movedim(3, 1) if isinstance(encoder, WindowedEncoder) else x]
        depth, vit = len(encoder.timm.blocks), encoder.timm
        outputs = block_outputs(encoder, images, range(depth)[-self.count :])
        return [as_map(self._normed(vit, tokens), encoder, images) for tokens in outputs]

    def _normed(self, vit: Any, tokens: Tokens) -> Float[Tensor, "B N D"]:
        patches = vit.fc_norm(vit.norm(tokens.patches))
        if not self.class_token:
            return patches
        first = vit.fc_norm(vit.norm(tokens.prefix[:, :1]))
        return torch.cat([patches, first.expand_as(patches)], dim=2)


def as_map(patches: Float[Tensor, "B N D"], encoder: Encoder, images: Float[Tensor, "B C H W"]) -> Map:
    """Patch tokens of images as a map."""
    rows = images.shape[2] // encoder.patch[0]
    return patches.unflatten(1, (rows, -1)).movedim(3, 1).contiguous()


def refuse_patch(patch: Sequence[int]) -> None:
    """Refuse patches that give no whole strides of powers of two, with the nearest that do."""
    side = patch[0]
    if len(set(patch)) > 1 or side < 4 or side & (side - 1):
        near = min((4, 8, 16, 32), key=lambda power: abs(power - side))
        raise UserError(
            f"boxes need maps with strides of powers of two, and patches of {patch[0]}x{patch[1]} give none: use "
            f"--encoder.patch {near}"
        )
