"""Masker: settings without weights that turn a signal into a Mask; Signal: what a masker wants to look at."""

from dataclasses import dataclass
from enum import Enum

from jaxtyping import Float, Int64
from torch import Tensor

from mimkit.masks.mask import Mask

Curve = float | tuple[float, float]
"""A number, or its values at the beginning and at the end of training, with a straight line between them."""

Moment = float | Float[Tensor, ""]
"""Progress of training in [0, 1); a tensor on the device where a compiled step computes with it."""


def at(curve: Curve, progress: Moment) -> Moment:
    """The value of a curve at this moment."""
    return curve[0] + (curve[1] - curve[0]) * progress if isinstance(curve, tuple) else curve


class Signal(Enum):
    """What a masker reads; the method computes exactly this and hands it over (see `observe.py`)."""

    NONE = "none"  # nothing: a tensor of width 0 that carries shape and device
    PATCHES = "patches"  # (B, N, D) embedded patches with their positions, before the first block
    FEATURES = "features"  # (B, N, D) what the block `masker.layer` gives out, all patches seen
    ATTENTION = "attention"  # (B, N, H) the class token's attention to the patches in the last block, per head


@dataclass(frozen=True, kw_only=True)
class Masker:
    """Base of all maskers. A subclass is a frozen dataclass of settings; one verb makes the masks.

    Each key is the address of one picture's randomness; draw with `mimkit.randomness.uniform(keys, n)`.
    """

    def reads(self, progress: float) -> Signal:
        """Which signal this masker wants at this moment; `progress` runs over training in [0, 1)."""
        return Signal.NONE

    def maps(self, signal: Float[Tensor, "B N C"], grid: tuple[int, int]) -> Float[Tensor, "B N M"]:
        """What is kept of the signal: a few numbers a patch, the first of them its score; by default the signal.

        These are drawn by `mimkit masks`, and cached where a masker does not look anew at every step.
        """
        return signal

    @property
    def guide(self) -> "Masker":
        """The masker that looks: itself, or the part of it that does."""
        return self

    def started(self, progress: float) -> "Masker":
        """This masker, which a trigger has started at this moment; one that cannot be started stays what it is."""
        return self

    def describe(self, maps: Float[Tensor, "B N M"], mask: Mask) -> dict[str, Tensor]:
        """Numbers for the log: scalars on the device."""
        return {}

    def __call__(
        self, maps: Float[Tensor, "B N M"], keys: Int64[Tensor, " B"], progress: Moment, grid: tuple[int, int]
    ) -> Mask:
        """A mask over the `N = grid[0] * grid[1]` patches (row-major) of `B` pictures."""
        raise NotImplementedError(f"{type(self).__name__} is no masker until it defines __call__")
