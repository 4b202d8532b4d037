"""Schedules: the progress of training enters, a factor for the learning rate leaves."""

import math
from dataclasses import dataclass

from mimkit.errors import UserError


@dataclass(frozen=True, kw_only=True)
class WarmupCosine:
    """Linear warm-up, then half a cosine to `final` (facebookresearch/mae:util/lr_sched.py, per iteration)."""

    warmup: float = 0.05
    """Share of training for the warm-up: MAE's 40 of 800 epochs are 0.05."""
    final: float = 0.0
    """Last rate as a share of the peak."""

    def __post_init__(self) -> None:
        for name in ("warmup", "final"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"schedule.{name} is a share between 0 and 1, got {getattr(self, name)}")

    def __call__(self, progress: float) -> float:
        """The factor at `progress` in [0, 1)."""
        if progress < self.warmup:
            return progress / self.warmup
        rest = (progress - self.warmup) / max(1e-12, 1 - self.warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * rest))
