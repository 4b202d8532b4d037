"""Schedules: the progress of training enters, a factor for the learning rate leaves."""

import math
from dataclasses import dataclass, fields, replace

from mimkit.core.errors import UserError, at_least

LONGEST = 0.5  # share of training that a warm-up in epochs may take


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Base of all schedules: linear warm-up from `first` to the peak rate, then what a subclass says."""

    warmup: float | None = 0.05
    """Share of training for the warm-up; None where `warmup_epochs` says how long it is."""
    warmup_epochs: float | None = None
    """Epochs of the warm-up however many there are in all, as papers have it; at most half of them. Instead of the
    share."""
    first: float = 0.0
    """First rate of the warm-up as a share of the peak; SimMIM begins at 0.005 of it."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "warmup_epochs" and isinstance(value, float) and not 0 <= value <= 1:
                raise UserError(f"schedule.{field.name} is a share between 0 and 1, got {value}")
        at_least(0, **{"schedule.warmup_epochs": self.warmup_epochs})
        if (self.warmup is None) == (self.warmup_epochs is None):
            raise UserError(
                f"schedule.warmup is a share, schedule.warmup_epochs are epochs, got {self.warmup} and "
                f"{self.warmup_epochs}: give one, and None for the other"
            )

    def of(self, epochs: float) -> "Schedule":
        """The same for a training of so many epochs, with its warm-up as a share of them."""
        if self.warmup_epochs is None:
            return self
        return replace(self, warmup=min(LONGEST, self.warmup_epochs / epochs), warmup_epochs=None)

    @property
    def share(self) -> float:
        """Of training that is warm-up; a schedule with a warm-up in epochs has one of so many epochs alone (`of`)."""
        assert self.warmup is not None, "of(epochs) comes first"
        return self.warmup

    def __call__(self, progress: float) -> float:
        """The factor at `progress` in [0, 1)."""
        if progress < self.share:
            return self.first + (1 - self.first) * progress / self.share
        return self.after((progress - self.share) / max(1e-12, 1 - self.share), progress)

    def after(self, rest: float, progress: float) -> float:
        """The factor once it is warm, by the share `rest` of the time since then, or by the progress of all."""
        raise NotImplementedError(f"{type(self).__name__} is no schedule until it defines after")


@dataclass(frozen=True, kw_only=True)
class WarmupCosine(Schedule):
    """Linear warm-up, then half a cosine to `final` (facebookresearch/mae:util/lr_sched.py, per iteration)."""

    final: float = 0.0
    """Last rate as a share of the peak."""
    span: float = 1.0
    """Share of the half cosine that is passed; 0.8 ends before the bottom, at 0.095 of the peak (CAPI)."""
    whole: bool = False
    """The cosine runs over all of training and the warm-up hides its beginning, as in SimMIM's fine-tuning: after 20
    of 100 epochs the rate falls from the peak to 0.905 of it."""

    def after(self, rest: float, progress: float) -> float:
        way = self.span * (progress if self.whole else rest)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * way))


@dataclass(frozen=True, kw_only=True)
class WarmupLinear(Schedule):
    """Linear warm-up, then linearly to 0 (open-mmlab/mmsegmentation: its polynomial of power 1)."""

    def after(self, rest: float, progress: float) -> float:
        return 1 - rest


@dataclass(frozen=True, kw_only=True)
class WarmupSteps(Schedule):
    """Linear warm-up, then the peak rate, times `factor` at each step (microsoft/SimMIM:lr_scheduler.py, multistep)."""

    steps: tuple[float, ...] = (0.875,)
    """When the rate falls, as shares of training: SimMIM's epoch 700 of 800."""
    factor: float = 0.1
    """What each fall leaves of the rate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 < step < 1 for step in self.steps) or min(self.steps, default=1.0) < (self.warmup or 0.0):
            raise UserError(f"schedule.steps are shares of training after the warm-up, below 1, got {self.steps}")

    def after(self, rest: float, progress: float) -> float:
        return self.factor ** sum(progress >= step for step in self.steps)
