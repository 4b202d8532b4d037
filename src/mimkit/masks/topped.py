"""Blocks that are topped up with single patches. Noise enters, a Mask leaves."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mimkit.core.errors import UserError, at_least
from mimkit.core.randomness import uniform
from mimkit.masks.mask import Mask
from mimkit.masks.masker import Masker, Progress
from mimkit.masks.random import check_ratio, hidden_count
from mimkit.masks.structured import BlockMasker


@dataclass(frozen=True, kw_only=True)
class ToppedBlockMasker(Masker):
    """BootMAE's masks (Dong et al. 2022, arXiv:2207.07116; LightDXY/BootMAE:utils.py): blocks, then drawn patches.

    Blocks are BEiT's. All pictures hide equally many patches. The released code rolls its list of places by up to three
    before it is cut, so that as many patches of the blocks are visible after all, and others hidden instead; here drawn
    for each picture.

    Raises (when called): UserError on a grid of one patch.
    """

    ratio: float = 0.75  # type: ignore[bad-override]
    """Share of hidden patches, 0 < ratio < 1: 147 of 196."""
    blocks: float = 0.82
    """Share of the hidden patches that lie in blocks, 0 < blocks <= 1: 120 of 147."""
    least: int = 16
    """Smallest area of a rectangle, as BlockMasker has it."""
    roll: int = 3
    """Up to so many patches of the blocks are visible after all; 0: none."""

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        at_least(1, **{"masker.least": self.least})
        at_least(0, **{"masker.roll": self.roll})
        if not 0 < self.blocks <= 1:
            raise UserError(f"masker.blocks is a share of the hidden patches, above 0 and up to 1, got {self.blocks:g}")

    def count(self, n: int) -> tuple[int, int]:
        """How many of `n` patches are hidden, and how many of these by blocks."""
        hide = max(1, hidden_count(n, self.ratio))
        return hide, max(1, int(hide * self.blocks))

    def __call__(
        self,
        score_maps: Float[Tensor, "B N M"],
        rng_keys: Int64[Tensor, " B"],
        progress: Progress,
        grid: tuple[int, int],
    ) -> Mask:
        n = grid[0] * grid[1]
        hide, in_blocks = self.count(n)
        # A ratio between two counts, which no rounding can take for the next.
        masker = BlockMasker(ratio=(in_blocks - 0.5) / n, least=self.least)
        blocks = masker(score_maps, rng_keys, progress, grid).hidden
        noise = uniform(rng_keys, n, stream=2)
        # As many others must be there to be hidden instead, and a patch to stay visible.
        most = min(self.roll, n - hide - 1, in_blocks)
        spared = (uniform(rng_keys, 1, stream=3) * (most + 1)).floor()
        place = torch.where(blocks, noise, -1.0).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        scores = torch.where(blocks, noise + 1, noise)
        return Mask.from_scores(torch.where(place < spared, -1.0, scores), hide)
