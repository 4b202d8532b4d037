"""Random masks: each picture hides a fixed share of its patches, drawn uniformly. Noise enters, a Mask leaves."""

from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor

from mimkit.core.errors import UserError
from mimkit.core.randomness import uniform
from mimkit.masks.mask import Mask
from mimkit.masks.masker import Curve, Masker, Progress, at


def hidden_count(patches: int, ratio: float) -> int:
    """How many of `patches` to hide: all but `int(patches * (1 - ratio))`, the float product floored.

    Source: MAE's released code (facebookresearch/mae:models_mae.py), float artifacts included: 100 patches at 0.9
    keep 9, not 10.
    """
    return patches - max(1, int(patches * (1 - ratio)))


def check_ratio(ratio: Curve) -> None:
    """Refuse a ratio that hides nothing or everything."""
    for value in ratio if isinstance(ratio, tuple) else (ratio,):
        if not 0 < value < 1:
            raise UserError(f"masker.ratio must lie between 0 and 1 (both excluded), got {value}; MAE uses 0.75")


@dataclass(frozen=True, kw_only=True)
class RandomMasker(Masker):
    """MAE's random masks (He et al. 2022, section 3): sort uniform noise, keep the lowest, hide the rest."""

    ratio: Curve = 0.75  # type: ignore[bad-override]
    """Share of hidden patches, 0 < ratio < 1; two numbers: from the first at the start to the second at the end."""
    throw: float = 0.0
    """Share of patches that is thrown away, neither seen nor predicted, rounded down (CrossMAE: 0.5, ratio 0.25)."""

    same: bool = False
    """All pictures that a process sees at once hide the same patches, drawn by the key of the first (MSN)."""

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        most = max(self.ratio) if isinstance(self.ratio, tuple) else self.ratio
        if not 0 <= self.throw < 1 - most:
            raise UserError(
                f"masker.throw {self.throw} and masker.ratio {most} must leave visible patches: sum below 1"
            )

    def __call__(
        self,
        score_maps: Float[Tensor, "B N M"],
        rng_keys: Int64[Tensor, " B"],
        progress: Progress,
        grid: tuple[int, int],
    ) -> Mask:
        n = score_maps.shape[1]
        noise = uniform(rng_keys[:1], n).expand(len(rng_keys), n) if self.same else uniform(rng_keys, n)
        hide = hidden_count(n, float(at(self.ratio, progress)))
        return Mask.from_scores(noise, hide, throw=min(int(n * self.throw), n - hide - 1))
