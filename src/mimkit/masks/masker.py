"""Masker: settings without weights that turn a signal into a Mask; Signal: what a masker wants to look at."""

from dataclasses import dataclass
from enum import Enum

from jaxtyping import Float, Int64
from torch import Tensor

from mimkit.masks.mask import Mask


class Signal(Enum):
    """What a masker reads; the method computes exactly this and hands it over (see `methods/observe.py`)."""

    NONE = "none"  # nothing: a tensor of width 0 that carries shape and device


@dataclass(frozen=True, kw_only=True)
class Masker:
    """Base of all maskers. A subclass is a frozen dataclass of settings with one verb.

    Each key is the address of one picture's randomness; draw with `mimkit.randomness.uniform(keys, n)`.
    """

    def reads(self, progress: float) -> Signal:
        """Which signal this masker wants at this moment; `progress` runs over training in [0, 1)."""
        return Signal.NONE

    def __call__(
        self, signal: Float[Tensor, "B N C"], keys: Int64[Tensor, " B"], progress: float, grid: tuple[int, int]
    ) -> Mask:
        """A mask over the `N = grid[0] * grid[1]` patches (row-major) of `B` pictures."""
        raise NotImplementedError(f"{type(self).__name__} is no masker until it defines __call__")
