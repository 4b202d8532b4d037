"""Informed masks: what they share. Random masks until `start`, then scores of the patches enter, a Mask leaves."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

from jaxtyping import Float, Int64
from torch import Tensor

from mimkit.core.config import absolute
from mimkit.core.errors import UserError, unknown
from mimkit.masks.mask import Mask
from mimkit.masks.masker import Curve, Masker, Progress, Signal
from mimkit.masks.random import RandomMasker, check_ratio
from mimkit.masks.trigger import Trigger


@dataclass(frozen=True, kw_only=True)
class InformedMasker(Masker):
    """A masker that looks at something, after a beginning with random masks of the same ratio.

    A subclass names its `signal` and defines `hide`, and `maps` where the signal itself is no score.
    """

    signal: ClassVar[Signal]
    triggers: ClassVar[tuple[str, ...]] = ("fixed",)

    ratio: Curve = 0.75  # type: ignore[bad-override]
    """Share of hidden patches, 0 < ratio < 1; two numbers: from the first at the start to the second at the end."""
    start: float = 0.0
    """Share of training that comes before, with random masks; with another `trigger`: at the latest then."""

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        if not 0 <= self.start <= 1:
            raise UserError(f"masker.start is a share of training between 0 and 1, got {self.start}")

    def reads(self, progress: float) -> Signal:
        return Signal.NONE if progress < self.start else self.signal

    def start_at(self, progress: float) -> "InformedMasker":
        return replace(self, start=min(self.start, progress))

    def recall(self, memory: Float[Tensor, "..."]) -> "InformedMasker":
        """Started, if the trigger in its memory has fired."""
        trigger = Trigger.from_tensor(memory)
        return self.start_at(trigger.fired_at) if trigger.fired else self

    def since(self, progress: Progress) -> Progress:
        """Progress since the start, in [0, 1): what hints decay over."""
        return (progress - self.start) / (1 - self.start)

    @abstractmethod
    def hide(
        self,
        score_maps: Float[Tensor, "B N M"],
        rng_keys: Int64[Tensor, " B"],
        progress: Progress,
        grid: tuple[int, int],
    ) -> Mask:
        """The mask once the masker has started."""

    def __call__(self, score_maps: Tensor, rng_keys: Tensor, progress: Progress, grid: tuple[int, int]) -> Mask:
        # No maps, no look: before its start the masker hides at random, by the same keys and the same count.
        if score_maps.shape[2] == 0:
            return RandomMasker(ratio=self.ratio)(score_maps, rng_keys, progress, grid)
        return self.hide(score_maps, rng_keys, progress, grid)


@dataclass(frozen=True, kw_only=True)
class ModelMasker(InformedMasker):
    """An informed masker that asks a model: the one in training, its moving average, or a teacher."""

    layer: ClassVar[int] = -1
    """Encoder block whose output `Signal.FEATURES` is, counted from the end; a setting of those that read it."""

    scorer: str = "online"
    """Who looks: `online` (the encoder in training), `ema` (its moving average), or a teacher: a timm model's name
    with released weights, a run or an export folder."""
    momentum: float = 0.999
    """Of the moving average: the share of it that a step keeps."""
    refresh: int = 0
    """0: look at every batch. k: look at all whole pictures every k epochs and carry the maps through each crop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # Absolute in what config.json keeps: a resumed run may be started from another folder.
        object.__setattr__(self, "scorer", absolute(self.scorer))
        if not 0 <= self.momentum <= 1:
            raise UserError(f"masker.momentum lies between 0 and 1, got {self.momentum}; 0.999 is usual")
        if self.refresh < 0:
            raise UserError(f"masker.refresh counts epochs and is at least 0 (every step), got {self.refresh}")


def choice(setting: str, value: str, valid: tuple[str, ...], of: str = "masker") -> None:
    """Refuse a value that is none of those known."""
    if value not in valid:
        raise unknown(f"value of {of}.{setting}", value, list(valid))
