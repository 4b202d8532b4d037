"""Random masks: each picture hides a fixed share of its patches, drawn uniformly. Noise enters, a Mask leaves."""

from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor

from mimkit.errors import UserError
from mimkit.masks.mask import Mask
from mimkit.masks.masker import Masker
from mimkit.randomness import uniform


def hidden_count(patches: int, ratio: float) -> int:
    """How many of `patches` to hide: all but `int(patches * (1 - ratio))`, the float product floored.

    Source: MAE's released code (facebookresearch/mae:models_mae.py), float artefacts included: 100 patches at 0.9
    keep 9, not 10.
    """
    return patches - max(1, int(patches * (1 - ratio)))


@dataclass(frozen=True, kw_only=True)
class RandomMasker(Masker):
    """MAE's random masks (He et al. 2022, section 3): sort uniform noise, keep the lowest, hide the rest."""

    ratio: float = 0.75
    """Share of hidden patches, 0 < ratio < 1."""

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise UserError(f"masker.ratio must lie between 0 and 1 (both excluded), got {self.ratio}; MAE uses 0.75")

    def __call__(
        self, signal: Float[Tensor, "B N C"], keys: Int64[Tensor, " B"], progress: float, grid: tuple[int, int]
    ) -> Mask:
        n = signal.shape[1]
        return Mask.from_scores(uniform(keys, n), hidden_count(n, self.ratio))
