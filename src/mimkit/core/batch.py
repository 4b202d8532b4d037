"""What passes between loader, method and loop: pictures enter as a Batch, a loss leaves as a Step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mimkit.core.annotation import Annotation


@dataclass(frozen=True)
class Batch:
    """Pictures as the loader hands them over, already cropped, normalized and on the device."""

    images: Float[Tensor, "B C H W"]
    rng_keys: Int64[Tensor, " B"]  # one random key a picture: a function of (seed, step, place in the global batch)
    index: Int64[Tensor, " B"]  # which picture of the set, on the CPU; a replaced bad picture keeps its substitute's
    skipped: tuple[tuple[int, str], ...] = ()  # bad pictures met while making this batch: (picture, reason)
    crop: Float[Tensor, "B 4"] | None = None  # seen box: top, left, height, width as shares of the whole picture
    flip: Bool[Tensor, " B"] | None = None  # whether mirrored left to right after the cut
    symmetry: Int64[Tensor, " B"] | None = None  # behind that, of `core.symmetry`; None: none
    valid: Bool[Tensor, "B C H W"] | None = None  # which values were measured, the others are 0; None: all of them
    progress: Float[Tensor, ""] | None = None  # progress on the device, for arithmetic in compiled steps
    other_views: tuple[
        Float[Tensor, "B C _ _"], ...
    ] = ()  # further views of the same pictures, as `images.other_views` says
    targets: tuple[Annotation, ...] = ()  # of tasks that learn more than labels: of each image, in its pixels


@dataclass(frozen=True)
class DatasetView:
    """Pictures outside the batches: whole, without augmentation, normalized, made when asked for."""

    count: int  # pictures in the set
    sample: Callable[[], Float[Tensor, "b C H W"]]  # the same few at every call, on the device
    batches: Callable[[], Iterator[tuple[Float[Tensor, "b C H W"], Int64[Tensor, " b"]]]]  # all, with their numbers
    labels: Int64[Tensor, " n"] | None = None  # of every picture, for tasks that are taught them
    classes: int = 0  # how many kinds of labels there are


@dataclass(frozen=True)
class Step:
    """What one forward pass gives back."""

    loss: Float[Tensor, ""]
    logs: dict[str, Tensor] = field(default_factory=dict)  # scalars on the device; read only when logging
