"""Masker: settings without weights that turn a signal into a Mask; Signal: what a masker wants to look at."""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor

from mimkit.masks.mask import Mask

Curve = float | tuple[float, float]
"""A number, or its values at the beginning and at the end of training, with a straight line between them."""

Progress = float | Float[Tensor, ""]
"""Progress of training in [0, 1); a tensor on the device where a compiled step computes with it."""


def at(curve: Curve, progress: Progress) -> Progress:
    """The value of a curve at this moment."""
    # Plain arithmetic, which serves numbers and tensors on a device alike.
    return curve[0] + (curve[1] - curve[0]) * progress if isinstance(curve, tuple) else curve


class Signal(Enum):
    """What a masker reads; the method computes exactly this and hands it over (see `guidance/signals.py`)."""

    NONE = "none"  # nothing: a tensor of width 0 that carries shape and device
    PATCHES = "patches"  # (B, N, D) embedded patches with their positions, before the first block
    FEATURES = "features"  # (B, N, D) what the block `masker.layer` gives out, all patches seen
    ATTENTION = "attention"  # (B, N, H) the class token's attention to the patches in the last block, per head


@runtime_checkable
class Evidence(Protocol):
    """What a masker may ask about the model before an epoch, on a few fixed pictures; computed when it is asked for."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        ...

    def signal(self, kind: Signal) -> Float[Tensor, "B N C"]:
        """A signal of the encoder in training."""
        ...

    def exploitation(self) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Fractions of the decoder's output that come from visible and from mask tokens; they sum to 1.

        Raises:
            UserError: the method has no decoder.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Masker:
    """Base of all maskers. A subclass is a frozen dataclass of settings; one verb makes the masks.

    Each key is the address of one picture's randomness; draw with `mimkit.core.randomness.uniform(keys, n)`.
    A masker is a value and changes nothing in itself. What it must remember from epoch to epoch is one tensor: it
    starts as `memory` says, `learn` renews it before each epoch, checkpoints carry it, and `recall` gives the masker
    that follows from it.
    """

    ratio: ClassVar[Curve | None] = None
    """Fraction of hidden patches, of those that have one as a setting."""

    @property
    def ramps(self) -> bool:
        """Whether the number of hidden patches changes with training, so that a compiled step would compile anew."""
        return isinstance(self.ratio, tuple)

    @property
    def needs_exploitation(self) -> bool:
        """Whether `learn` asks for the exploitation of a decoder, which not every method has."""
        return False

    def memory(self) -> Float[Tensor, "..."] | None:
        """What is remembered before the first epoch; None for nothing."""
        return None

    def learn(
        self, memory: Float[Tensor, "..."] | None, evidence: Evidence, progress: float
    ) -> tuple[Float[Tensor, "..."] | None, dict[str, float]]:
        """What to remember from now on, of the same shape, and what to log; called before each epoch."""
        return memory, {}

    def recall(self, memory: Float[Tensor, "..."]) -> "Masker":
        """This masker, as configured, as it is with such a memory."""
        return self

    def reads(self, progress: float) -> Signal:
        """Which signal this masker wants at this moment; `progress` runs over training in [0, 1)."""
        return Signal.NONE

    def score_maps(self, signal: Float[Tensor, "B N C"], grid: tuple[int, int]) -> Float[Tensor, "B N M"]:
        """What is kept of the signal: a few numbers a patch, the first of them its score; by default the signal.

        These are drawn by `mimkit masks`, and cached where a masker does not look anew at every step.
        """
        return signal

    @property
    def guide(self) -> "Masker":
        """The masker that looks: itself, or the part of it that does."""
        return self

    def start_at(self, progress: float) -> "Masker":
        """This masker, which a trigger has started at this moment; one that cannot be started stays what it is."""
        return self

    def describe(self, score_maps: Float[Tensor, "B N M"], mask: Mask) -> dict[str, Tensor]:
        """Numbers for the log: scalars on the device."""
        return {}

    def __call__(
        self,
        score_maps: Float[Tensor, "B N M"],
        rng_keys: Int64[Tensor, " B"],
        progress: Progress,
        grid: tuple[int, int],
    ) -> Mask:
        """A mask over the `N = grid[0] * grid[1]` patches (row-major) of `B` pictures."""
        raise NotImplementedError(f"{type(self).__name__} is no masker until it defines __call__")
