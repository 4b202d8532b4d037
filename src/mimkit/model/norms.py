"""Norms of maps: a name and a width enter, a layer over (B, C, H, W) leaves."""

from typing import Literal

from timm.layers import LayerNorm2d
from torch import nn

from mimkit.model.projector import GlobalBatchNorm

Norm = Literal["group", "layer", "batch"]
"""`group`: GroupNorm over 16 channels or more; `layer`: over all channels of a place; `batch`: over all processes."""

FEWEST = 16  # channels of a group: of 2 or 4 values, as the pool of one place has them, little but signs would be left


def norm_of(name: Norm, width: int) -> nn.Module:
    """The norm of this name for so many channels; only `batch` depends on the other pictures of a step."""
    if name == "group":
        groups = max(n for n in range(1, max(1, width // FEWEST) + 1) if width % n == 0)
        return nn.GroupNorm(groups, width)
    return LayerNorm2d(width) if name == "layer" else GlobalBatchNorm(width)
