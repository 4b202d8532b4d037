"""Trigger: what a masker learns about the model before each epoch enters, the moment to start it leaves."""

import math
from dataclasses import astuple, dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Trigger:
    """When mask tokens have become worth more than visible ones: the moment to start informed masks.

    The masked share exceeds one half from the beginning, learns to fall and then rises. So the trigger is armed once
    the share has been below one half, and fires at the second evaluation in a row in which masked exceeds visible.
    """

    armed: bool = False
    streak: int = 0
    """Evaluations in a row, up to the last, that exceeded while armed."""
    fired_at: float = math.inf
    """Progress at which it fired; infinite until then."""

    PATIENCE = 2

    @property
    def fired(self) -> bool:
        return self.fired_at < math.inf

    def update(self, masked: float, visible: float, progress: float) -> "Trigger":
        """The trigger after an evaluation: mean shares of masked and visible tokens, and the progress in [0, 1)."""
        if self.fired:
            return self
        streak = self.streak + 1 if self.armed and masked > visible else 0
        fired_at = progress if streak >= self.PATIENCE else math.inf
        return Trigger(self.armed or masked < 0.5, streak, fired_at)

    def to_tensor(self) -> Float[Tensor, "3"]:
        """Three numbers that a checkpoint can carry; the progress is rounded down, so that its own step has begun."""
        # A float32 above the true progress would start the masks one step late in a run that is resumed.
        state = torch.tensor(astuple(self), dtype=torch.float32)
        late = state.double() > torch.tensor(astuple(self), dtype=torch.float64)
        return torch.where(late, state.nextafter(torch.zeros(3)), state)

    @staticmethod
    def from_tensor(state: Float[Tensor, "3"]) -> "Trigger":
        """The trigger that `to_tensor` wrote, from any device."""
        armed, streak, fired_at = state.tolist()
        return Trigger(bool(armed), int(streak), fired_at)
