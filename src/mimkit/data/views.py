"""Which part of a picture is seen, and how: keys and sizes enter, boxes leave.

Boxes are (top, left, height, width) in whole pixels.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mimkit.core.errors import UserError, at_least
from mimkit.core.randomness import uniform
from mimkit.data.augment import RandAugment
from mimkit.data.color import ColorAugment
from mimkit.data.resize import Interpolation

Flips = Literal["left-right", "dihedral"]
"""How pictures may be turned: mirrored, as a view says; or pictures without an up by all symmetries of their shape."""
_TRIES = 10


@dataclass(frozen=True, kw_only=True)
class View(ABC):
    """A rule that says which box of a picture is seen, and whether mirrored, from a random key alone.

    What then becomes of the box is drawn from the same key: `augment` alters it in 0..255, `colors` in [0, 1], and
    `erase` after normalization.
    """

    aligned: ClassVar[bool] = False
    """Whether box and mirroring follow from the key of the first view, not from its own."""

    interpolation: Interpolation = "bicubic"
    """How a box is resized."""
    size: int | None = None
    """Side of this view in pixels; by default as images.size says, and always so for the first view."""
    color: ColorAugment | None = None
    """Random changes of color; by default none."""
    augment: RandAugment | None = None
    """RandAugment, picture by picture on the CPU, for fine-tuning; by default none."""
    erase: float = 0.0
    """Share of pictures in which a box of noise covers 2 to 33 % of the area, for fine-tuning."""

    def __post_init__(self) -> None:
        if not 0 <= self.erase <= 1:
            raise UserError(f"view.erase is a share between 0 and 1, got {self.erase}; 0.25 is usual")
        at_least(1, **{"view.size": self.size})

    def check(self, channels: int) -> None:
        """Refuse what pictures of so many channels cannot undergo."""
        for change in (self.color, self.augment):
            if change is not None:
                change.check(channels)

    def shape(self, images: tuple[int, int]) -> tuple[int, int]:
        """Height and width of this view among images of this height and width."""
        return images if self.size is None else (self.size, self.size)

    @abstractmethod
    def boxes(
        self,
        rng_keys: Int64[Tensor, " B"],
        heights: Int64[Tensor, " B"],
        widths: Int64[Tensor, " B"],
        size: tuple[int, int],
    ) -> tuple[Int64[Tensor, "B 4"], Bool[Tensor, " B"]]:
        """Boxes inside pictures of the given sizes, to be resized to `size` (height, width), and which to mirror."""


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop(View):
    """A box of random area and aspect at a random place, by torchvision's rule (transforms/v2).

    Ten tries, then the largest central box. MAE uses scale 0.2..1 (He et al. 2022, appendix A.1).
    """

    scale: tuple[float, float] = (0.2, 1.0)
    """Least and largest share of the picture's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and largest width / height of the box; drawn evenly in its logarithm."""
    flip: float = 0.5
    """Share of pictures that are mirrored left to right."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_flip(self.flip)
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"view.scale must be two shares with 0 < least <= largest <= 1, got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"view.ratio must be 0 < least <= largest, got {self.ratio}")

    def boxes(self, rng_keys: Tensor, heights: Tensor, widths: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        noise = uniform(rng_keys, 2 * _TRIES + 3).double()  # float64, as torchvision counts in Python's numbers
        heights, widths = heights.double(), widths.double()
        area = (heights * widths)[:, None] * (self.scale[0] + (self.scale[1] - self.scale[0]) * noise[:, :_TRIES])
        least, largest = math.log(self.ratio[0]), math.log(self.ratio[1])
        # Even in the logarithm: 3:4 and 4:3 are equally likely.
        aspect = (least + (largest - least) * noise[:, _TRIES : 2 * _TRIES]).exp()
        w = (area * aspect).sqrt().round()
        h = (area / aspect).sqrt().round()
        # All ten tries of all pictures at once; a loop that ends at the first that fits would go picture by picture.
        fits = (w > 0) & (h > 0) & (w <= widths[:, None]) & (h <= heights[:, None])
        first = fits.int().argmax(1, keepdim=True)
        fitting = fits.any(1)
        # Where no try fits (very long pictures) the largest box whose aspect is still allowed, in the middle.
        central_w = torch.minimum(widths, (heights * self.ratio[1]).round())
        central_h = torch.minimum(heights, (widths / self.ratio[0]).round())
        w = torch.where(fitting, w.gather(1, first).squeeze(1), central_w)
        h = torch.where(fitting, h.gather(1, first).squeeze(1), central_h)
        top = torch.where(fitting, (noise[:, -3] * (heights - h + 1)), (heights - h) / 2).floor()
        left = torch.where(fitting, (noise[:, -2] * (widths - w + 1)), (widths - w) / 2).floor()
        return torch.stack([top, left, h, w], 1).long(), noise[:, -1] < self.flip


@dataclass(frozen=True, kw_only=True)
class ShiftedCrop(RandomResizedCrop):
    """All but a margin of a box by torchvision's rule: at its upper left, or moved (CMAE, datasets/cmae_dataset.py).

    Two of equal settings show shifted parts of one box of a picture, in one mirroring: also as a further view its box
    follows from the key of the first view; colors follow from its own. Boxes are of whole pixels of the picture.
    """

    aligned = True

    margin: float = 0.125
    """Share of the box's height and width that is not seen; 32 of 256 pixels in CMAE."""
    places: int = 0
    """Of so many places along the margin one is drawn, downwards and to the right each; CMAE's second view has 32. 0:
    the upper left."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.margin < 1:
            raise UserError(f"view.margin is a share from 0 to below 1, got {self.margin}; CMAE has 0.125")
        at_least(0, **{"view.places": self.places})

    def boxes(self, rng_keys: Tensor, heights: Tensor, widths: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        boxes, flip = super().boxes(rng_keys, heights, widths, size)
        sides = (boxes[:, 2:] * (1 - self.margin)).round().clamp(min=1).long()
        room = boxes[:, 2:] - sides
        place = (uniform(rng_keys, 2, stream=1).double() * self.places).floor() / max(1, self.places)
        move = (place * room).round().long()
        # The crop is mirrored behind the cut here and before it in CMAE: left is right in the picture.
        right = torch.where(flip, room[:, 1] - move[:, 1], move[:, 1])
        corner = boxes[:, :2] + torch.stack([move[:, 0], right], 1)
        return torch.cat([corner, sides], 1), flip


@dataclass(frozen=True, kw_only=True)
class Whole(View):
    """The whole picture, resized if it has another size (its aspect is not kept): for small, centered pictures."""

    flip: float = 0.5
    """Share of pictures that are mirrored left to right."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_flip(self.flip)

    def boxes(self, rng_keys: Tensor, heights: Tensor, widths: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        zero = torch.zeros_like(heights)
        return torch.stack([zero, zero, heights, widths], 1), uniform(rng_keys, 1).squeeze(1) < self.flip


@dataclass(frozen=True, kw_only=True)
class ScaleJitter(View):
    """A box of the view's aspect that shows the picture smaller or larger, and may leave it: for dense tasks.

    Large-scale jitter (Ghiasi et al. 2021; facebookresearch/detectron2:configs/common/data/coco.py). What lies beyond
    the picture is to the right and below, gray in the picture (128, which detectron2 fills in) and unknown in the rest.
    """

    scale: tuple[float, float] = (0.1, 2.0)
    """Least and largest size of the picture, of that at which it just fits into the view."""
    covers: bool = False
    """Scales are of the size at which the picture just covers the view, as segmentation takes them."""
    flip: float = 0.5
    """Share of pictures that are mirrored left to right."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_flip(self.flip)
        if not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise UserError(f"view.scale must be two numbers with 0 < least <= largest, got {self.scale}")

    def boxes(self, rng_keys: Tensor, heights: Tensor, widths: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        noise = uniform(rng_keys, 4).double()
        fits = torch.stack([size[0] / heights.double(), size[1] / widths.double()])
        zoom = fits.amax(0) if self.covers else fits.amin(0)
        zoom = zoom * (self.scale[0] + (self.scale[1] - self.scale[0]) * noise[:, 0])
        h = (size[0] / zoom).round().clamp(min=1)
        w = (size[1] / zoom).round().clamp(min=1)
        top = (noise[:, 1] * (heights - h + 1).clamp(min=0)).floor()
        left = (noise[:, 2] * (widths - w + 1).clamp(min=0)).floor()
        return torch.stack([top, left, h, w], 1).long(), noise[:, 3] < self.flip


@dataclass(frozen=True, kw_only=True)
class CenterCrop(View):
    """The largest central box of the wanted aspect, shrunk to a fraction of its sides: what evaluation looks
    at.

    Resizing the shorter side to 256 and cutting 224 is `fraction` 0.875; 1 keeps all that the aspect permits.
    """

    fraction: float = 0.875
    """Share of the sides that is kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fraction <= 1:
            raise UserError(f"view.fraction must lie in (0, 1], got {self.fraction}; 0.875 is usual")

    def boxes(self, rng_keys: Tensor, heights: Tensor, widths: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        # The box has the aspect of what it becomes, so nothing is stretched.
        aspect = size[1] / size[0]
        h = (torch.minimum(heights.double(), widths / aspect) * self.fraction).round().clamp(min=1)
        w = (torch.minimum(widths.double(), heights * aspect) * self.fraction).round().clamp(min=1)
        top, left = ((heights - h) / 2).round(), ((widths - w) / 2).round()
        boxes = torch.stack([top, left, h, w], 1).long()
        return boxes, torch.zeros(len(heights), dtype=torch.bool, device=heights.device)


def _check_flip(flip: float) -> None:
    if not 0 <= flip <= 1:
        raise UserError(f"view.flip is a share between 0 and 1, got {flip}; 0.5 mirrors half of the pictures")


def relative_boxes(
    boxes: Int64[Tensor, "B 4"], heights: Int64[Tensor, " B"], widths: Int64[Tensor, " B"]
) -> Float[Tensor, "B 4"]:
    """Boxes as shares (float32, 0..1) of their pictures' heights and widths."""
    return boxes.float() / torch.stack([heights, widths, heights, widths], 1)
