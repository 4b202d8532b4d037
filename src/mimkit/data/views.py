"""Which part of a picture is seen: keys and sizes enter, boxes leave; pictures and boxes enter, views leave.

Boxes are (top, left, height, width) in whole pixels.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from mimkit.errors import UserError
from mimkit.randomness import uniform

Interpolation = Literal["bicubic", "bilinear"]
_TRIES = 10
_AT_ONCE = 1 << 18  # values; a megabyte of float32
_SMALL = 56 * 56  # pixels of a picture for which the CPU multiplies matrices
_TABLED = 64  # pixels; for longer axes a table of all weights would not pay


@dataclass(frozen=True, kw_only=True)
class View(ABC):
    """A rule that says which box of a picture is seen, and whether mirrored, from a random key alone."""

    interpolation: Interpolation = "bicubic"
    """How a box is resized."""

    @abstractmethod
    def boxes(
        self,
        keys: Int64[Tensor, " B"],
        heights: Int64[Tensor, " B"],
        widths: Int64[Tensor, " B"],
        size: tuple[int, int],
    ) -> tuple[Int64[Tensor, "B 4"], Bool[Tensor, " B"]]:
        """Boxes inside pictures of the given sizes, to be resized to `size` (height, width), and which to
        mirror.
        """


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
        _check_flip(self.flip)
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"view.scale must be two shares with 0 < least <= largest <= 1, got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"view.ratio must be 0 < least <= largest, got {self.ratio}")

    def boxes(self, keys: Tensor, heights: Tensor, widths: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        noise = uniform(keys, 2 * _TRIES + 3).double()
        heights, widths = heights.double(), widths.double()
        area = (heights * widths)[:, None] * (self.scale[0] + (self.scale[1] - self.scale[0]) * noise[:, :_TRIES])
        least, largest = math.log(self.ratio[0]), math.log(self.ratio[1])
        aspect = (least + (largest - least) * noise[:, _TRIES : 2 * _TRIES]).exp()
        w, h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        fits = (w > 0) & (h > 0) & (w <= widths[:, None]) & (h <= heights[:, None])
        first = fits.int().argmax(1, keepdim=True)
        found = fits.any(1)
        central_w = torch.minimum(widths, (heights * self.ratio[1]).round())
        central_h = torch.minimum(heights, (widths / self.ratio[0]).round())
        w = torch.where(found, w.gather(1, first).squeeze(1), central_w)
        h = torch.where(found, h.gather(1, first).squeeze(1), central_h)
        top = torch.where(found, (noise[:, -3] * (heights - h + 1)), (heights - h) / 2).floor()
        left = torch.where(found, (noise[:, -2] * (widths - w + 1)), (widths - w) / 2).floor()
        return torch.stack([top, left, h, w], 1).long(), noise[:, -1] < self.flip


@dataclass(frozen=True, kw_only=True)
class Whole(View):
    """The whole picture, resized if it has another size (its aspect is not kept): for small, centred
    pictures.
    """

    flip: float = 0.5
    """Share of pictures that are mirrored left to right."""

    def __post_init__(self) -> None:
        _check_flip(self.flip)

    def boxes(self, keys: Tensor, heights: Tensor, widths: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        zero = torch.zeros_like(heights)
        return torch.stack([zero, zero, heights, widths], 1), uniform(keys, 1).squeeze(1) < self.flip


@dataclass(frozen=True, kw_only=True)
class CenterCrop(View):
    """The largest central box of the wanted aspect, shrunk to a fraction of its sides: what evaluation looks
    at.

    Resizing the shorter side to 256 and cutting 224 is `fraction` 0.875; 1 keeps all that the aspect permits.
    """

    fraction: float = 0.875
    """Share of the sides that is kept."""

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UserError(f"view.fraction must lie in (0, 1], got {self.fraction}; 0.875 is usual")

    def boxes(self, keys: Tensor, heights: Tensor, widths: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        aspect = size[1] / size[0]
        h = (torch.minimum(heights.double(), widths / aspect) * self.fraction).round().clamp(min=1)
        w = (torch.minimum(widths.double(), heights * aspect) * self.fraction).round().clamp(min=1)
        top, left = ((heights - h) / 2).round(), ((widths - w) / 2).round()
        boxes = torch.stack([top, left, h, w], 1).long()
        return boxes, torch.zeros(len(heights), dtype=torch.bool, device=heights.device)


def _check_flip(flip: float) -> None:
    if not 0 <= flip <= 1:
        raise UserError(f"view.flip is a share between 0 and 1, got {flip}; 0.5 mirrors half of the pictures")


def shares(
    boxes: Int64[Tensor, "B 4"], heights: Int64[Tensor, " B"], widths: Int64[Tensor, " B"]
) -> Float[Tensor, "B 4"]:
    """Boxes as shares (float32, 0..1) of their pictures' heights and widths."""
    return boxes.float() / torch.stack([heights, widths, heights, widths], 1)


def crop_resize(
    pictures: UInt8[Tensor, "B C H W"],
    boxes: Int64[Tensor, "B 4"],
    flip: Bool[Tensor, " B"],
    size: tuple[int, int],
    interpolation: Interpolation = "bicubic",
) -> Float[Tensor, "B C h w"]:
    """The boxes of a batch, resized with antialiasing and mirrored: float32 in 0..255, on the pictures'
    device.

    Two batched matrix products with one row of filter weights an output pixel; equal to torchvision's
    `resized_crop(antialias=True)` on float pictures, clamped to 0..255.
    """
    b, c, height, width = pictures.shape
    device = pictures.device
    if _whole(pictures, boxes, size):
        return _mirrored(pictures, flip).float()
    boxes, flip = boxes.to(device), flip.to(device)
    out = torch.empty(b, c, *size, device=device)
    rows = b if device.type != "cpu" else min(b, max(1, _AT_ONCE // (c * height * width)))
    # (rows, channels, columns): the channels of a line lie side by side, so that both products are wide
    values = torch.empty(rows, height, c, width, device=device)
    narrow = torch.empty(rows, height * c, size[1], device=device)
    for start in range(0, b, rows):  # on the CPU a piece at a time, so that it stays in the cache
        piece, n = slice(start, start + rows), min(rows, b - start)
        top, left, tall, wide = boxes[piece].unbind(1)
        across = _weights(left, wide, flip[piece], width, size[1], interpolation)
        down = _weights(top, tall, torch.zeros_like(flip[piece]), height, size[0], interpolation)
        values[:n].copy_(pictures[piece].transpose(1, 2))
        torch.bmm(values[:n].flatten(1, 2), across.mT, out=narrow[:n])
        small = torch.bmm(down, narrow[:n].view(n, height, c * size[1]))
        torch.clamp(small.view(n, size[0], c, size[1]).transpose(1, 2), 0, 255, out=out[piece])
    return out


def crop_resize_many(
    pictures: UInt8[Tensor, "B C H W"],
    boxes: Int64[Tensor, "B 4"],
    flip: Bool[Tensor, " B"],
    size: tuple[int, int],
    interpolation: Interpolation = "bicubic",
) -> UInt8[Tensor, "B C h w"] | Float[Tensor, "B C h w"]:
    """The faster of the two ways for pictures of one size.

    Matrix products on a GPU and for small pictures, else one after the other in uint8 arithmetic (measured on
    a CPU: 8 against 22 us at 32 px, 45 against 34 us at 64 px).
    """
    if _whole(pictures, boxes, size):
        return _mirrored(pictures, flip)
    if pictures.device.type != "cpu" or pictures.shape[2] * pictures.shape[3] <= _SMALL:
        return crop_resize(pictures, boxes, flip, size, interpolation)
    ways = zip(pictures, boxes, flip.tolist(), strict=True)
    return torch.stack([crop_resize_one(one, box, mirror, size, interpolation) for one, box, mirror in ways])


def _whole(pictures: Tensor, boxes: Tensor, size: tuple[int, int]) -> bool:
    """Whether every box is the whole picture and nothing needs resizing."""
    height, width = pictures.shape[2:]
    return size == (height, width) and bool((boxes == boxes.new_tensor([0, 0, height, width])).all())


def _mirrored(pictures: Tensor, flip: Tensor) -> Tensor:
    rows = flip.nonzero().flatten().to(pictures.device)
    return pictures.index_copy(0, rows, pictures.index_select(0, rows).flip(3))


def _weights(
    start: Int64[Tensor, " B"],
    length: Int64[Tensor, " B"],
    flip: Bool[Tensor, " B"],
    n: int,
    out: int,
    interpolation: Interpolation,
) -> Float[Tensor, "B out n"]:
    """Resampling weights from `n` pixels of an axis, of which `length` from `start` are seen, to `out`
    pixels.
    """
    if n <= _TABLED:
        return _table(n, out, interpolation, start.device)[length + flip * (n + 1), :, n - start]
    place = torch.arange(n, device=start.device) - start.unsqueeze(1)
    weights = _filter(place, length, out, interpolation)
    return torch.where(flip.view(-1, 1, 1), weights.flip(1), weights)


@lru_cache(maxsize=8)
def _table(n: int, out: int, interpolation: Interpolation, device: torch.device) -> Tensor:
    """The weights of every length 0..n, then mirrored ones, for every start: (2n+2, out, n+1, n).

    A view of memory for (2n+2, out, 2n), because a shift is a window.
    """
    lengths = torch.arange(n + 1, device=device)
    places = torch.arange(-n, n, device=device).expand(n + 1, -1)
    table = _filter(places, lengths, out, interpolation)
    return torch.cat([table, table.flip(1)]).unfold(2, n, 1)


def _filter(
    place: Int64[Tensor, "B n"], length: Int64[Tensor, " B"], out: int, interpolation: Interpolation
) -> Float[Tensor, "B out n"]:
    """Weights of pixels at `place` in a stretch of `length` pixels that is resized to `out`.

    The rule of torch's antialiased interpolation (aten/native/cpu/UpSampleKernel.cpp), which is Pillow's.
    """
    length = length.view(-1, 1, 1)
    scale = length / out
    stretch = scale.clamp(min=1)
    support = stretch * (2 if interpolation == "bicubic" else 1)
    centre = scale * (torch.arange(out, device=place.device) + 0.5).view(1, -1, 1)
    first = (centre - support + 0.5).long().clamp(min=0)
    end = torch.minimum((centre + support + 0.5).long(), length)
    place = place.unsqueeze(1)
    x = ((place - centre + 0.5) / stretch).abs()
    if interpolation == "bicubic":  # Keys' cubic with a = -0.5
        near = (1.5 * x - 2.5) * x * x + 1
        far = ((-0.5 * x + 2.5) * x - 4) * x + 2
        weight = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    else:
        weight = (1 - x).clamp(min=0)
    weight = weight * ((place >= first) & (place < end))
    return weight / weight.sum(2, keepdim=True)


def crop_resize_one(
    picture: UInt8[Tensor, "C H W"],
    box: Int64[Tensor, " 4"],
    flip: bool,
    size: tuple[int, int],
    interpolation: Interpolation = "bicubic",
) -> UInt8[Tensor, "C h w"]:
    """One box of one picture on the CPU, resized with antialiasing in uint8 arithmetic: the way of the
    workers.
    """
    top, left, height, width = box.tolist()
    view = picture[:, top : top + height, left : left + width]
    if (height, width) != size:
        view = interpolate(view.unsqueeze(0), size, mode=interpolation, antialias=True, align_corners=False)[0]
    return view.flip(2) if flip else view
