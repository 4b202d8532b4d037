"""Inverse block masks: a visible rectangle that wraps around. Noise enters, a Mask leaves."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mimkit.core.errors import UserError
from mimkit.core.randomness import uniform
from mimkit.masks.mask import Mask
from mimkit.masks.masker import Masker, Progress
from mimkit.masks.random import check_ratio


@dataclass(frozen=True, kw_only=True)
class InverseBlockMasker(Masker):
    """CAPI's masks (Darcet et al. 2025, arXiv:2502.08769; facebookresearch/capi:data.py): one rectangle stays visible.

    Its sides are rounded up, and what is too much is taken off its last rows, so that all pictures show equally many
    patches. It wraps around the edges, so that each patch is hidden as often as any other.

    Raises (when called): UserError on a grid of one patch.
    """

    ratio: float = 0.65  # type: ignore[bad-override]
    """Share of patches that is not seen, 0 < ratio < 1, rounded down."""
    predict: float = 0.05
    """Share of these that is predicted, drawn uniformly, at least one; the rest is thrown away."""
    aspect: tuple[float, float] = (0.5, 2.0)
    """Lowest and highest ratio of height to width of the rectangle, as far as the grid has room."""
    roll: bool = True
    """Place it anywhere and wrap it around; if not, it lies whole in the grid, most often in the middle."""

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        if not 0 < self.predict <= 1:
            raise UserError(f"masker.predict is a share above 0 and up to 1, got {self.predict:g}; CAPI has 0.05")
        low, high = self.aspect
        if not 0 < low <= high < math.inf:
            raise UserError(f"masker.aspect goes from a number above 0 to one at least as large, got {self.aspect}")

    def __call__(
        self,
        score_maps: Float[Tensor, "B N M"],
        rng_keys: Int64[Tensor, " B"],
        progress: Progress,
        grid: tuple[int, int],
    ) -> Mask:
        rows, columns = grid
        n = rows * columns
        if n == 1:
            raise UserError("a grid of one patch is all or nothing: use larger images or smaller patches")
        hidden = min(max(1, int(n * self.ratio)), n - 1)
        predicted = max(1, int(hidden * self.predict))
        height, width = self.sides(rng_keys, n - hidden, grid)
        place = uniform(rng_keys, 2, stream=1)
        free = (rows, columns) if self.roll else (rows - height + 1, columns - width + 1)
        top, left = (place[:, 0] * free[0]).floor(), (place[:, 1] * free[1]).floor()
        # Rows and columns counted from the corner of the rectangle, around the edges.
        down = (torch.arange(rows, device=rng_keys.device) - top[:, None]) % rows
        right = (torch.arange(columns, device=rng_keys.device) - left[:, None]) % columns
        order = down[:, :, None] * width[:, None, None] + right[:, None]
        inside = (down < height[:, None])[:, :, None] & (right < width[:, None])[:, None]
        visible = (inside & (order < n - hidden)).flatten(1)
        scores = torch.where(visible, -1.0, uniform(rng_keys, n, stream=2))
        return Mask.from_scores(scores, predicted, throw=hidden - predicted)

    def sides(
        self, rng_keys: Int64[Tensor, " B"], visible: int, grid: tuple[int, int]
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Height and width of rectangles of at least so many patches."""
        rows, columns = grid
        narrow, wide = visible / columns**2, rows**2 / visible  # beyond these aspects it would not fit
        low, high = min(max(self.aspect[0], narrow), wide), max(min(self.aspect[1], wide), narrow)
        aspect = low * (high / low) ** uniform(rng_keys, 1)[:, 0]
        height = (visible * aspect).sqrt().ceil().clamp(math.ceil(visible / columns), rows)
        width = torch.maximum((visible / aspect).sqrt().ceil(), (visible / height).ceil()).clamp(max=columns)
        return height, width
