"""The contract with the training loop: a Batch and the progress enter a Task, a Step leaves it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mimkit.masks.mask import Mask
from mimkit.model.encoder import Encoder


@dataclass(frozen=True)
class Batch:
    """Pictures as the loader hands them over, already cropped, normalised and on the device."""

    images: Float[Tensor, "B C H W"]
    keys: Int64[Tensor, " B"]  # one random key a picture: a function of (seed, step, place in the global batch)
    index: Int64[Tensor, " B"]  # which picture of the set, on the CPU; a replaced bad picture keeps its substitute's
    skipped: tuple[tuple[int, str], ...] = ()  # bad pictures met while making this batch: (picture, reason)
    crop: Float[Tensor, "B 4"] | None = None  # seen box: top, left, height, width as shares of the whole picture
    flip: Bool[Tensor, " B"] | None = None  # whether mirrored left to right after the cut
    moment: Float[Tensor, ""] | None = None  # progress on the device, for arithmetic in compiled steps
    others: tuple[Float[Tensor, "B C _ _"], ...] = ()  # further views of the same pictures, as `images.others` says


@dataclass(frozen=True)
class Gallery:
    """Pictures outside the batches: whole, without augmentation, normalised, made when asked for."""

    count: int  # pictures in the set
    some: Callable[[], Float[Tensor, "b C H W"]]  # the same few at every call, on the device
    every: Callable[[], Iterator[tuple[Float[Tensor, "b C H W"], Int64[Tensor, " b"]]]]  # all, with their numbers
    labels: Int64[Tensor, " n"] | None = None  # of every picture, for tasks that are taught them
    classes: int = 0  # how many kinds of labels there are


@dataclass(frozen=True)
class Step:
    """What one forward pass gives back."""

    loss: Float[Tensor, ""]
    logs: dict[str, Tensor] = field(default_factory=dict)  # scalars on the device; read only when logging


class Task(nn.Module):
    """Anything the loop can train."""

    undecayed: tuple[str, ...] = ()  # parameters without weight decay, besides those with one axis

    def forward(self, batch: Batch, progress: float) -> Step:
        """The loss of a batch; `progress` runs over training in [0, 1). Means the same in train and eval mode."""
        raise NotImplementedError(f"{type(self).__name__} is no task until it defines forward")

    def before_step(self, progress: float) -> None:
        """Called with the gradients of a whole step, before they are clipped, to drop some; by default none is."""

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step, to move slow copies and centres; by default nothing moves."""

    def before_epoch(self, epoch: int, progress: float, gallery: Gallery) -> dict[str, float]:
        """Called before the first step of each epoch, to look at pictures outside the batches; its result is logged."""
        return {}


class Method(Task):
    """A task that trains an encoder."""

    encoder: Encoder

    def study(self, gallery: Gallery, begun: bool) -> None:
        """Called before the first step of a process, to take labels or statistics of the pictures.

        `begun`: a checkpoint will be loaded, and with it what is kept in buffers.
        """

    def reconstruct(self, batch: Batch, progress: float) -> tuple[Float[Tensor, "BK C H W"], Mask] | None:
        """Pictures of what it learned, in the normalisation of its input, and their masks; None if it draws none."""
        return None

    def agreement(self, batch: Batch, progress: float) -> tuple[Float[Tensor, "BK N"], Mask] | None:
        """For a method that draws no pictures: how far, 0 to 1, each patch is as it should be, and the masks."""
        return None


@dataclass(kw_only=True, slots=True)
class MethodConfig:
    """Base of the settings of a method."""

    windows = False  # whether the encoder may be one that leaves no patch out, as a Swin
    convolutions = False  # whether the encoder may be a ResNet, which has no patches at all
    supervised = False  # learns the labels of the train split, of which it takes a `share`
    needs_whole_batch = False  # the loss needs all pictures of a step at once: the loop refuses micro batches

    def build(self, encoder: Encoder) -> Method:
        """The method that trains this encoder."""
        raise NotImplementedError(f"{type(self).__name__} is no method until it defines build")
