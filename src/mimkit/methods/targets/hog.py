"""Histograms of oriented gradients as the target: images enter, a histogram for each cell and channel leaves."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mimkit.core.errors import at_least
from mimkit.methods.targets.base import PictureTarget

BINS = 9  # orientations of 20 degrees each, without sign


@dataclass(frozen=True, kw_only=True)
class HOG(PictureTarget):
    """MaskFeat's target (Wei et al. 2022, arXiv:2112.09133): how edges are oriented, not how bright they are.

    Each channel by itself: Sobel gradients with mirrored borders vote with their magnitude for one of 9 orientations,
    in cells of `cell` x `cell` pixels; the 9 numbers of a cell and channel are a unit vector, or zero where the cell is
    flat (facebookresearch/SlowFast:slowfast/models/operators.py, without a Gaussian). With patches of 16 pixels a patch
    has 2 x 2 cells x 9 x 3 = 108 numbers. The loss that fits is `l2`. Contrast and brightness change nothing.
    """

    cell: int = 8  # type: ignore[bad-override]
    """Side of a cell in pixels, a divisor of the patch: 8 in the paper, for patches of 16."""

    def __post_init__(self) -> None:
        at_least(2, **{"target.cell": self.cell})

    def outputs(self, channels: int) -> int:
        return BINS * channels

    def __call__(
        self, images: Tensor, mean: Tensor, std: Tensor, palette: Tensor | None = None
    ) -> Float[Tensor, "B O h w"]:
        """Unit vectors (O = channels x 9, the channel first) of every cell of normalized images (B, C, H, W)."""
        with torch.autocast(images.device.type, enabled=False):
            across, down = sobel(images.float())
            angle = torch.atan2(across, down)
            orientation = (BINS * angle / math.pi).floor().long() % BINS  # opposite gradients are one orientation
            votes = torch.zeros(*images.shape[:2], BINS, *images.shape[2:], device=images.device)
            votes.scatter_(2, orientation.unsqueeze(2), torch.hypot(across, down).unsqueeze(2))
            # The mean of a cell instead of its sum: the vectors are brought to length 1 anyway.
            histograms = F.avg_pool2d(votes.flatten(1, 2), self.cell).unflatten(1, (-1, BINS))
            return F.normalize(histograms, dim=2).flatten(1, 2)

    def restore(
        self, prediction: Tensor, images: Tensor, mean: Tensor, std: Tensor, palette: Tensor | None = None
    ) -> Float[Tensor, "B C H W"]:
        """Each cell as a star of strokes along its edges, as bright as their share of the histogram."""
        histograms = prediction.float().unflatten(1, (-1, BINS)).clamp(min=0)
        strokes = edge_strokes(self.cell).to(prediction.device)
        stars = torch.einsum("bcohw,oyx->bchywx", histograms, strokes)
        drawn = stars.flatten(4, 5).flatten(2, 3).clamp(0, 1)
        return (drawn - mean) / std


def sobel(images: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B C H W"]]:
    """Gradients to the right and downwards of every channel, with mirrored borders."""
    channels = images.shape[1]
    slope = images.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    across = F.conv2d(padded, slope.expand(channels, 1, 3, 3), groups=channels)
    down = F.conv2d(padded, slope.T.expand(channels, 1, 3, 3), groups=channels)
    return across, down


def edge_strokes(side: int) -> Float[Tensor, "9 side side"]:
    """A stroke through the middle of a cell for each orientation, at right angles to the gradient: along the edge."""
    place = torch.arange(side) - (side - 1) / 2
    y, x = torch.meshgrid(place, place, indexing="ij")
    angle = (torch.arange(BINS) + 0.5) * math.pi / BINS
    # The gradient points to (sin, cos) in (x, y); its edge is where the component along it is small.
    along_gradient = angle.sin().view(-1, 1, 1) * x + angle.cos().view(-1, 1, 1) * y
    return (along_gradient.abs() < 0.75).float()
