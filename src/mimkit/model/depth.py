"""Heads of depth: maps of an encoder enter, meters of every pixel leave."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.model.dense import Map, resized
from mimkit.model.norms import Norm, norm_of

FINEST = 4  # stride in pixels to which maps are brought by layers that learn


def doublings(stride: float) -> int:
    """How many doublings bring a map of this stride to 4 pixels: 3 of a Swin's last one, 2 of patches of 16."""
    return max(0, round(math.log2(stride / FINEST)))


class DepthHead(nn.Module):
    """Deconvolutions to a stride of 4, then convolutions at full size; depth is a sigmoid times the largest.

    The head of Xie et al. 2023, "Revealing the Dark Secrets of Masked Image Modeling", for a Swin: three deconvolutions
    of 32 channels. Maps of other strides get as many as lead to 4 pixels. First weights are PyTorch's: with their
    Normal(0, 0.001), the error after a hundred steps was twice as large.

    Args:
        stride: of the map, in pixels.
        channels: of the deconvolutions.
        fine_channels: of the convolutions at full size.
        furthest: largest depth, in meters.
    """

    def __init__(
        self,
        width: int,
        stride: float,
        channels: int = 32,
        fine_channels: int = 128,
        furthest: float = 10.0,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(doublings(stride)):
            up = nn.ConvTranspose2d(width, channels, 2, 2, bias=False)
            layers, width = [*layers, up, norm_of(norm, channels), nn.ReLU()], channels
        coarse = nn.Conv2d(width, fine_channels, 3, padding=1, bias=False)
        self.coarse = nn.Sequential(*layers, coarse, norm_of(norm, fine_channels), nn.ReLU())
        self.fine = nn.Sequential(
            nn.Conv2d(fine_channels, fine_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(fine_channels, 1, 3, padding=1),
        )
        self.furthest = furthest

    def forward(self, maps: list[Map], size: Sequence[int]) -> Float[Tensor, "B H W"]:
        """Meters of every pixel, above 0."""
        x = self.coarse(maps[-1])
        for _ in range(2):
            x = resized(x, [2 * side for side in x.shape[2:]])
        logits = resized(self.fine(x), size).float()
        return self.furthest * torch.sigmoid(logits[:, 0])


class LinearDepth(nn.Module):
    """One linear layer that spreads each place over bins of depth; their mean is its depth (Oquab et al. 2023, DINOv2).

    Args:
        nearest, furthest: middles of the first and of the last bin, in meters.
    """

    def __init__(self, widths: Sequence[int], bins: int = 256, nearest: float = 0.001, furthest: float = 10.0) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(sum(widths), bins, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.get_parameter("bias"))
        self.depths: Tensor
        self.register_buffer("depths", torch.linspace(nearest, furthest, bins), persistent=False)

    def forward(self, maps: list[Map], size: Sequence[int]) -> Float[Tensor, "B H W"]:
        """Meters of every pixel, above 0; places are four times as fine as those of the maps before they are read."""
        x = torch.cat(maps, dim=1)
        # A linear layer of what is blended is a blend of what it says, in far fewer products.
        logits = resized(self.classifier(x), [4 * side for side in x.shape[2:]]).float()
        weights = F.relu(logits) + 0.1
        depth = torch.einsum("bkhw,k->bhw", weights, self.depths) / weights.sum(dim=1)
        return resized(depth[:, None], size)[:, 0]
