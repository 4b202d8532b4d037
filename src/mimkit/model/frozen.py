"""Frozen: a trained network enters; the same one leaves, moves with its owner and is in no checkpoint."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Frozen(nn.Module):
    """A network that is used and never trained: a teacher, a tokenizer.

    It is always in evaluation mode and without gradient. It has no parameters and no entries in a state dict, so
    checkpoints and optimizers do not see it and loading stays strict, but it goes along to the device.
    """

    network: Any

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # Past `Module.__setattr__`, which would make it a child with weights of its own in every state dict.
        self.__dict__["network"] = network.eval().requires_grad_(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Frozen":
        # Moves to devices and types go through `_apply`, which visits children alone: this one has to be passed on.
        self.network._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, *inputs: Any, **settings: Any) -> Any:
        """What the network makes of it."""
        return self.network(*inputs, **settings)
