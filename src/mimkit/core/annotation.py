"""What is known of a picture beside its pixels, which both ends hand on: boxes, masks, joints, classes, depths.

Places are in pixels, and (0, 0) is the outer corner of the upper left pixel: the box of a whole picture is
(0, 0, W, H), and the middle of its first pixel is (0.5, 0.5).
"""

from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal, TypeVar, get_args

import torch
from jaxtyping import Bool, Float, Int16, Int64
from torch import Tensor

A = TypeVar("A", bound="Annotation")
DenseTask = Literal["segment", "detect", "depth", "keypoints"]
"""What can be learned of a picture besides a label."""
DENSE_TASKS = get_args(DenseTask)
VOID = -1
"""The class of pixels that have none: no loss and no measure counts them."""


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """What a task knows of one picture; None for what it does not ask for. The n objects come in one order."""

    size: tuple[int, int]
    """Height and width of the picture in pixels."""
    boxes: Float[Tensor, "n 4"] | None = None
    """Left, top, right, bottom; inside the picture, and neither side 0."""
    labels: Int64[Tensor, " n"] | None = None
    """Class of each object, 0 for the first."""
    masks: Bool[Tensor, "n H W"] | None = None
    """Pixels of each object."""
    keypoints: Float[Tensor, "n J 3"] | None = None
    """Column, row, and 0 (not labeled: both are 0), 1 (hidden) or 2 (seen) of each joint."""
    areas: Float[Tensor, " n"] | None = None
    """Of each object in pixels, as the set says."""
    crowd: Bool[Tensor, " n"] | None = None
    """Whether an entry is a crowd: nothing learns it, and finding it is neither right nor wrong."""
    segments: Int16[Tensor, "H W"] | None = None
    """Class of each pixel, 0 for the first; VOID."""
    depth: Float[Tensor, "H W"] | None = None
    """Meters of each pixel; NaN where nothing is known."""

    _of_objects: ClassVar[tuple[str, ...]] = ("boxes", "labels", "masks", "keypoints", "areas", "crowd")

    def to(self: A, device: torch.device | str) -> A:
        """The same on a device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in tensors.items()})

    def at(self: A, index: Int64[Tensor, " m"] | Bool[Tensor, " n"]) -> A:
        """The same picture with some of its objects."""
        of_objects = {name: getattr(self, name) for name in self._of_objects}
        return replace(self, **{name: value[index] for name, value in of_objects.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class Joints:
    """The skeleton of which a set labels the joints."""

    names: tuple[str, ...]
    """Of the J joints."""
    mirrored: tuple[int, ...]
    """Which joint each becomes when the picture is mirrored: `left knee` becomes `right knee`."""
    bones: tuple[tuple[int, int], ...] = ()
    """Pairs of joints that are drawn as lines."""
    sigmas: tuple[float, ...] = ()
    """How exactly each is labeled, as shares of the root of the area (COCO's OKS); empty: not known."""


@dataclass(frozen=True, kw_only=True)
class Prediction(Annotation):
    """What a trained task says of one picture, in its pixels."""

    scores: Float[Tensor, " n"] | None = None
    """How sure it is of each object, 0 to 1, most sure first."""

    _of_objects: ClassVar[tuple[str, ...]] = (*Annotation._of_objects, "scores")
