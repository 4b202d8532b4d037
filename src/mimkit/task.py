"""The contract with the training loop: a Batch and the progress enter a Task, a Step leaves it."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from jaxtyping import Float, Int64
from torch import Tensor, nn


@dataclass(frozen=True)
class Batch:
    """Pictures as the loader hands them over, already cropped, normalised and on the device."""

    images: Float[Tensor, "B C H W"]
    keys: Int64[Tensor, " B"]  # one random key a picture: a function of (seed, step, place in the global batch)
    index: Int64[Tensor, " B"]  # which picture of the set, on the CPU; a replaced bad picture keeps its substitute's
    skipped: tuple[tuple[int, str], ...] = ()  # bad pictures met while making this batch: (picture, reason)


@dataclass(frozen=True)
class Step:
    """What one forward pass gives back."""

    loss: Float[Tensor, ""]
    logs: dict[str, Tensor] = field(default_factory=dict)  # scalars on the device; read only when logging


class Task(Protocol):
    """Anything the loop can train: an nn.Module whose forward takes a batch and the progress in [0, 1)."""

    def __call__(self, batch: Batch, progress: float) -> Step: ...

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step (slow copies, centres); most tasks do nothing."""


@dataclass(kw_only=True, slots=True)
class MethodConfig:
    """Base of the settings of a pre-training method: a task that trains an encoder, kept as `.encoder`."""

    needs_whole_batch = False  # the loss needs all pictures of a step at once: the loop refuses micro batches

    def build(self, encoder: Any) -> nn.Module:
        """The task that trains this encoder."""
        raise NotImplementedError(f"{type(self).__name__} is no method until it defines build")
