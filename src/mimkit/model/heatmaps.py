"""Heat maps of joints: places enter and maps to learn leave, and back; a head makes them of an encoder's map.

The middle of the first place of a map of w columns lies half a place from the edge: a joint at column x of an image W
pixels wide is at x w / W - 1/2 of its map. So nothing moves when images and maps are mirrored, as with unbiased data
processing (Huang et al. 2020).
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.model.dense import Map, resized
from mimkit.model.depth import doublings
from mimkit.model.norms import Norm, norm_of

Decoding = Literal["dark", "quarter"]
LEAST = 1e-3  # of what a logarithm is taken
BLUR = 0.8  # sigma in places before that; a wider one would draw joints to the edge


def encode(
    keypoints: Float[Tensor, "B J 3"], size: Sequence[int], grid: Sequence[int], sigma: float = 2.0
) -> tuple[Float[Tensor, "B J h w"], Float[Tensor, "B J"]]:
    """A Gaussian of height 1 around each joint, and its weight: 0 of joints not labeled or outside of the image.

    Args:
        keypoints: column and row in pixels of an image, and whether it is labeled: 0, 1 or 2.
        size: height and width of the image in pixels.
        grid: rows and columns of the maps.
        sigma: of the Gaussian, in places of the map.
    """
    limits = keypoints.new_tensor([size[1], size[0]])
    places = keypoints[..., :2] / limits * keypoints.new_tensor([grid[1], grid[0]]) - 0.5
    steps = [torch.arange(sides, device=keypoints.device) for sides in (grid[1], grid[0])]
    across, down = (torch.exp(-((s - places[..., i, None]) ** 2) / (2 * sigma**2)) for i, s in enumerate(steps))
    inside = ((keypoints[..., :2] >= 0) & (keypoints[..., :2] < limits)).all(dim=2)
    return down[..., :, None] * across[..., None, :], (inside & (keypoints[..., 2] > 0)).float()


def decode(
    heatmaps: Float[Tensor, "B J h w"], size: Sequence[int], decoding: Decoding = "dark"
) -> Float[Tensor, "B J 3"]:
    """Column and row in pixels of an image of `size`, and score, of each joint: the highest place of its map, refined.

    `quarter` moves it by a quarter of a place to its higher neighbors (Newell et al. 2016). `dark` goes to the top of
    the Gaussian that fits the logarithm of the blurred map there (Zhang et al. 2020); where that has no top, and beside
    the edge, it is `quarter`.
    """
    height, width = heatmaps.shape[2:]
    score, place = heatmaps.flatten(2).max(dim=2)
    row, column = place // width, place % width
    inner = torch.stack([(column > 0) & (column < width - 1), (row > 0) & (row < height - 1)], dim=2)
    shift = 0.25 * torch.sign(_slopes(_around(heatmaps, row, column))) * inner
    if decoding == "dark":
        values = _around(_blurred(heatmaps).clamp(min=LEAST).log(), row, column)
        step, has_top = _top(values)
        shift = torch.where((has_top & inner.all(dim=2))[..., None], step.clamp(-1, 1), shift)
    middle = torch.stack([column, row], dim=2) + shift + 0.5
    pixels = middle * middle.new_tensor([size[1] / width, size[0] / height])
    return torch.cat([pixels, score[..., None]], dim=2)


def _around(maps: Float[Tensor, "B J h w"], row: Tensor, column: Tensor) -> Float[Tensor, "B J 3 3"]:
    """A place of each map with its neighbors; the edge repeats."""
    offsets = torch.arange(-1, 2, device=maps.device)
    rows = (row[..., None] + offsets).clamp(0, maps.shape[2] - 1)
    columns = (column[..., None] + offsets).clamp(0, maps.shape[3] - 1)
    index = rows[..., :, None] * maps.shape[3] + columns[..., None, :]
    return maps.flatten(2).gather(2, index.flatten(2)).unflatten(2, (3, 3))


def _slopes(v: Float[Tensor, "B J 3 3"]) -> Float[Tensor, "B J 2"]:
    """Across and down, in the middle."""
    return torch.stack([v[..., 1, 2] - v[..., 1, 0], v[..., 2, 1] - v[..., 0, 1]], dim=2) / 2


def _top(v: Float[Tensor, "B J 3 3"]) -> tuple[Float[Tensor, "B J 2"], Tensor]:
    """Steps across and down to the top of the parabola through these values, and whether it has one."""
    slope_x, slope_y = _slopes(v).unbind(dim=2)
    xx = v[..., 1, 2] - 2 * v[..., 1, 1] + v[..., 1, 0]
    yy = v[..., 2, 1] - 2 * v[..., 1, 1] + v[..., 0, 1]
    xy = (v[..., 2, 2] - v[..., 2, 0] - v[..., 0, 2] + v[..., 0, 0]) / 4
    determinant = xx * yy - xy**2
    has_top = (xx < 0) & (determinant > 1e-9)
    step = torch.stack([xy * slope_y - yy * slope_x, xy * slope_x - xx * slope_y], dim=2)
    return step / determinant.where(has_top, torch.ones_like(determinant))[..., None], has_top


def _blurred(maps: Float[Tensor, "B J h w"]) -> Float[Tensor, "B J h w"]:
    """Blurred by a Gaussian; the edge repeats."""
    radius = round(3 * BLUR)
    kernel = torch.exp(-(torch.arange(-radius, radius + 1, device=maps.device) ** 2) / (2 * BLUR**2))
    kernel = (kernel / kernel.sum()).to(maps.dtype)
    x = F.pad(maps.flatten(0, 1)[:, None], (radius,) * 4, mode="replicate")
    x = F.conv2d(F.conv2d(x, kernel[None, None, None, :]), kernel[None, None, :, None])
    return x.view(maps.shape)


class HeatmapHead(nn.Module):
    """Deconvolutions to a stride of 4 and one layer for all joints (Xiao et al. 2018; Xu et al. 2022, ViTPose).

    Args:
        stride: of the encoder's map, in pixels.
        channels: of the deconvolutions; 0: there are none, the map is blended to the stride instead (ViTPose's simple
            head).
    """

    def __init__(self, width: int, stride: float, joints: int, channels: int = 256, norm: Norm = "batch") -> None:
        super().__init__()
        self.finer = doublings(stride)
        layers: list[nn.Module] = []
        for _ in range(self.finer if channels else 0):
            up = nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False)
            layers, width = [*layers, up, norm_of(norm, channels), nn.ReLU()], channels
        side = 1 if channels else 3
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, joints, side, padding=side // 2))
        self.blended = channels == 0
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(layer.weight, std=0.001)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Map) -> Float[Tensor, "B J h w"]:
        """A heat map of each joint."""
        if self.blended:
            x = resized(x.relu(), [2**self.finer * side for side in x.shape[2:]])
        return self.layers(x).float()
