"""Momentum of a slow teacher: the progress of training enters, the share of the teacher that stays in a step leaves."""

import math
from dataclasses import dataclass
from typing import Literal

from mimkit.core.errors import UserError


@dataclass(kw_only=True, slots=True)
class Momentum:
    """How slowly a teacher follows its student: one rule for all methods that have one."""

    first: float = 0.996
    """Share of the teacher that stays in the first step, behind the warm-up."""
    last: float = 1.0
    """The same at the end."""
    shape: Literal["cosine", "linear", "constant"] = "cosine"
    """How it goes from the first to the last: half a cosine, a straight line, or not at all."""
    stretch: float = 1.0
    """The way to the last is so many times as long as training; above 1 it never gets there (MSN's and CAPI's 1.25)."""
    warmup: float = 0.0
    """Share of training, at its start, in which the momentum falls from 1 to the first (CAPI)."""

    def check(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("first", "last"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"momentum.{name} is a share between 0 and 1, got {getattr(self, name):g}")
        if not 0 < self.stretch < math.inf:
            raise UserError(f"momentum.stretch must be above 0, got {self.stretch:g}; 1 reaches the end")
        if not 0 <= self.warmup < 1:
            raise UserError(f"momentum.warmup is a share of training below 1, got {self.warmup:g}")

    def at(self, progress: float) -> float:
        """The momentum when so much of training, in [0, 1], is over."""
        if progress < self.warmup:
            return 1 + (self.first - 1) * progress / self.warmup
        way = min(1.0, (progress - self.warmup) / (1 - self.warmup) / self.stretch)
        if self.shape == "constant":
            return self.first
        rest = 1 - way if self.shape == "linear" else (1 + math.cos(math.pi * way)) / 2
        return self.last - (self.last - self.first) * rest
