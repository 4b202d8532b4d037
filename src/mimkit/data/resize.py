"""Resizing: pictures and boxes in them enter, views of one size leave, antialiased, at once or one by one.

Boxes are (top, left, height, width) in whole pixels.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int32, Int64, Shaped, UInt8
from torch import Tensor
from torch.nn.functional import embedding_bag, interpolate

from mimkit.data.values import Values

Interpolation = Literal["bicubic", "bilinear"]
Finish = Callable[[Tensor, Tensor | None], Tensor]
"""What is made of views in 0..255, uint8 or float32, in the second tensor if there is one: Normalize."""
_AT_ONCE = 1 << 18  # values; a megabyte of float32
_COVERED = 0.5  # share of a resized pixel's weights that must lie on data
_SMALL = 56 * 56  # pixels of a picture for which the CPU multiplies matrices
_TABLED = 64  # pixels; for longer axes a table of all weights would not pay


def crop_resize(
    pictures: UInt8[Tensor, "B C H W"],
    boxes: Int64[Tensor, "B 4"],
    flip: Bool[Tensor, " B"],
    size: tuple[int, int],
    interpolation: Interpolation = "bicubic",
    finish: Finish | None = None,
) -> Float[Tensor, "B C h w"]:
    """The boxes of a batch, resized with antialiasing and mirrored: float32 in 0..255 (or what `finish` makes
    of them), on the pictures' device.

    Equal to torchvision's `resized_crop(antialias=True)` on float pictures, clamped to 0..255.
    """
    finish = finish or _as_float
    if _whole(pictures, boxes, size):
        return finish(_mirrored(pictures, flip), None)
    return _resampled(pictures, boxes, flip, size, interpolation, finish)


def _resampled(
    pictures: Tensor, boxes: Tensor, flip: Tensor, size: tuple[int, int], interpolation: Interpolation, finish: Finish
) -> Tensor:
    """A batched matrix product with one column of filter weights an output column; then another one for the rows."""
    b, c, height, width = pictures.shape
    device = pictures.device
    top, left, tall, wide = boxes.to(device).unbind(1)
    flip = flip.to(device)
    across = _weights(left, wide, flip, width, size[1], interpolation)
    if device.type == "cpu":
        return _narrowed_then_summed(pictures, top, tall, across, size[0], interpolation, finish)
    down = _weights(top, tall, torch.zeros_like(flip), height, size[0], interpolation).mT
    # (rows, channels, columns): the channels of a line lie side by side, so that both products are wide
    values = pictures.transpose(1, 2).float().flatten(1, 2)
    small = torch.bmm(down, torch.bmm(values, across).view(b, height, c * size[1]))
    return finish(small.view(b, size[0], c, size[1]).transpose(1, 2).clamp(0, 255), None)


def _narrowed_then_summed(
    pictures: Tensor,
    top: Tensor,
    tall: Tensor,
    across: Float[Tensor, "B W w"],
    out_height: int,
    interpolation: Interpolation,
    finish: Finish,
) -> Tensor:
    """The CPU's way: a product for the columns, then weighted sums of the few rows that an output row sees.

    A second product would spend most of its time on weights that are zero. `embedding_bag` is the one operator that
    picks rows from a table and sums them with weights at once, so narrowed rows are made its table.
    """
    b, c, height, width = pictures.shape
    out_width = across.shape[2]
    # Batches go in pieces of equal length that stay in the cache from the first product to the end.
    rows = -(-b // max(1, round(b * c * height * max(width, out_width) / _AT_ONCE)))
    places, weights = _taps(height, out_height, interpolation)
    places = places.index_select(0, tall).unsqueeze(1)
    weights = weights.index_select(0, tall).unsqueeze(1)
    # Where a tap lies in the table of a piece, whose lines are (picture, channel, row), one after the other.
    channels = (torch.arange(b, dtype=torch.int32) % rows).view(b, 1, 1, 1) * c + torch.arange(c).int().view(c, 1, 1)
    lines = places + (channels * height + top.int().view(b, 1, 1, 1))
    weights = weights.expand_as(lines).flatten(0, 2)
    # Buffers for all pieces: fresh memory for each would be new pages that the cache does not hold.
    values = torch.empty(rows, c * height, width)
    narrow = torch.empty(rows, c * height, out_width)
    out = torch.empty(b, c, out_height, out_width)
    taps = rows * c * out_height
    pieces = zip(
        pictures.flatten(1, 2).split(rows),
        across.split(rows),
        out.split(rows),
        lines.flatten(0, 2).split(taps),
        weights.split(taps),
        strict=True,
    )
    for picture, columns, into, line, weight in pieces:
        n = len(picture)
        torch.bmm(values[:n].copy_(picture), columns, out=narrow[:n])
        small = embedding_bag(line, narrow.view(-1, out_width), per_sample_weights=weight, mode="sum")
        finish(small.view(into.shape).clamp_(0, 255), into)
    return out


def _as_float(values: Tensor, out: Tensor | None) -> Tensor:
    return values.float() if out is None else out.copy_(values)


def _resized_levels(
    levels: Float[Tensor, "C H W"], size: tuple[int, int], interpolation: Interpolation, holes: bool
) -> Float[Tensor, "C h w"]:
    """Levels resized; holes take no part in what is beside them."""
    if levels.shape[1:] == size:
        return levels
    if holes and (empty := levels.isnan()).any():
        levels = torch.cat([levels.nan_to_num(0.0), 1.0 - empty.float()])
        levels = interpolate(levels[None], size, mode=interpolation, antialias=True, align_corners=False)[0]
        return _weighed(*levels.chunk(2))
    resized = interpolate(levels[None], size, mode=interpolation, antialias=True, align_corners=False)[0]
    return resized.clamp_(0, 255)


def _weighed(levels: Float[Tensor, "*b C h w"], covered: Float[Tensor, "*b C h w"]) -> Float[Tensor, "*b C h w"]:
    """Sums of weighed values over the sum of their weights, NaN where too few of these lie on data."""
    return torch.where(covered < _COVERED, torch.nan, (levels / covered.clamp(min=_COVERED)).clamp(0, 255))


def crop_resize_many(
    pictures: Shaped[Tensor, "B C H W"],
    boxes: Int64[Tensor, "B 4"],
    flip: Bool[Tensor, " B"],
    size: tuple[int, int],
    interpolation: Interpolation = "bicubic",
    finish: Finish | None = None,
    values: Values = Values(),
) -> UInt8[Tensor, "B C h w"] | Float[Tensor, "B C h w"]:
    """The faster of the two ways for pictures of one size.

    All at once on a GPU and for small pictures, else one after the other as `crop_resize_one` does.
    """
    whole, at_once = _whole(pictures, boxes, size), pictures.device.type != "cpu" or _small(pictures)
    if not values.plain and (whole or at_once):
        pictures = values.levels(pictures)
        if values.holes and not whole:
            # Halved: what bicubic weights give beyond the ends is needed for the ratio, and would be clipped at 255.
            pairs = torch.cat([pictures.nan_to_num(0.0) / 2, 127.5 * ~pictures.isnan()], dim=1)
            sums, covered = _resampled(pairs, boxes, flip, size, interpolation, _as_float).chunk(2, dim=1)
            views = _weighed(2 * sums, covered / 127.5)
            return views if finish is None else finish(views, None)
    if whole:
        views = _mirrored(pictures, flip)
    elif at_once:
        return _resampled(pictures, boxes, flip, size, interpolation, finish or _as_float)
    else:
        crops = [
            crop_resize_one(picture, box, mirror, size, interpolation, values)
            for picture, box, mirror in zip(pictures, boxes, flip.tolist(), strict=True)
        ]
        views = torch.stack(crops)
    return views if finish is None else finish(views, None)


def _small(pictures: Tensor) -> bool:
    """Whether the CPU multiplies matrices."""
    return pictures.shape[2] * pictures.shape[3] <= _SMALL


def _whole(pictures: Tensor, boxes: Tensor, size: tuple[int, int]) -> bool:
    """Whether every box is the whole picture and nothing needs resizing."""
    height, width = pictures.shape[2:]
    return size == (height, width) and bool((boxes == boxes.new_tensor([0, 0, height, width])).all())


def _mirrored(pictures: Tensor, flip: Tensor) -> Tensor:
    n, rows = len(pictures), flip.nonzero().flatten()
    # Where each row comes from: from itself, or from behind the end, where its mirrored copy stands.
    source = torch.arange(n, device=flip.device)
    source[rows] = torch.arange(n, n + len(rows), device=flip.device)
    rows, source = rows.to(pictures.device), source.to(pictures.device)
    # two copies of whole pictures are faster than putting the mirrored ones into their places
    return torch.cat([pictures, pictures.index_select(0, rows).flip(3)]).index_select(0, source)


def _weights(
    start: Int64[Tensor, " B"],
    length: Int64[Tensor, " B"],
    flip: Bool[Tensor, " B"],
    n: int,
    out: int,
    interpolation: Interpolation,
) -> Float[Tensor, "B n out"]:
    """Resampling weights from `n` pixels of an axis, of which `length` from `start` are seen, to `out` pixels."""
    if n <= _TABLED:
        # For each length, mirrored or not, the rows of the table run over 2n shifts; a stretch that starts at `start`
        # is the window that begins n - start into them. Mirrored tables lie n + 1 lengths further on.
        table = _table(n, out, interpolation, start.device)
        return table.index_select(0, (length + flip * (n + 1)) * (2 * n) + n - start).view(-1, n, out)
    # Long axes: weights are computed for each box; a table would take hundreds of megabytes.
    place = torch.arange(n, device=start.device) - start.unsqueeze(1)
    weights = _filter(place.unsqueeze(1), length, out, interpolation).mT
    return torch.where(flip.view(-1, 1, 1), weights.flip(2), weights)


@lru_cache(maxsize=8)
def _table(n: int, out: int, interpolation: Interpolation, device: torch.device) -> Float[Tensor, "windows nout"]:
    """The weights of n pixels for every length 0..n, then mirrored ones, for every start, in a row each.

    A view of memory for (2n+2, 2n, out), because a shift is a window: the weights of a pixel depend only on its
    distance from the start of the stretch.
    """
    # So weights are laid out once for the distances -n to n - 1: those of all n pixels, for a stretch that starts at s,
    # are the n rows from distance -s on. Written out, a length would hold n such windows in n / 2 times the memory;
    # `as_strided` lets them overlap, each one row (`out` numbers) further than the last. To pick a crop's weights is
    # then one index_select, which copies a window and computes nothing.
    lengths = torch.arange(n + 1, device=device)
    table = _filter(torch.arange(-n, n, device=device).view(1, 1, -1), lengths, out, interpolation).mT
    memory = torch.cat([table, table.flip(2)]).contiguous()  # mirrored: the output columns in reverse
    # The last window that fits ends with the memory. Windows across two lengths are garbage that nobody indexes.
    return memory.as_strided(((2 * n + 2) * 2 * n - n + 1, n * out), (out, 1))


@lru_cache(maxsize=8)
def _taps(
    n: int, out: int, interpolation: Interpolation
) -> tuple[Int32[Tensor, "lengths out taps"], Float[Tensor, "lengths out taps"]]:
    """For every length 0..n the pixels that have weight in an output pixel, counted from the start of the
    stretch, and their weights.
    """
    lengths = torch.arange(n + 1)
    _, _, first, end = _reach(lengths, out, interpolation)
    # As many taps for all as the widest filter has, so that they are one tensor; narrower ones end in weights of 0.
    places = first + torch.arange(int((end - first).max()))
    weights = _filter(places, lengths, out, interpolation)
    return places.minimum(end - 1).clamp(min=0).int(), weights  # no place outside, where the weight is 0


def _reach(
    length: Int64[Tensor, " B"], out: int, interpolation: Interpolation
) -> tuple[Float[Tensor, "B out 1"], Float[Tensor, "B 1 1"], Int64[Tensor, "B out 1"], Int64[Tensor, "B out 1"]]:
    """Where the filters of a stretch of `length` pixels that is resized to `out` lie: centers, their width,
    the first pixel that each sees and the one after the last.

    The rule of torch's antialiased interpolation (aten/native/cpu/UpSampleKernel.cpp), which is Pillow's.
    """
    length = length.view(-1, 1, 1)
    scale = length / out
    stretch = scale.clamp(min=1)  # antialiasing: a filter widens when it shrinks, and is never narrower than a pixel
    support = stretch * (2 if interpolation == "bicubic" else 1)
    center = scale * (torch.arange(out, device=length.device) + 0.5).view(1, -1, 1)
    # Adding a half and truncating rounds, exactly as the C code does: another rounding moves a tap at some sizes.
    first = (center - support + 0.5).long().clamp(min=0)
    return center, stretch, first, torch.minimum((center + support + 0.5).long(), length)


def _filter(
    place: Int64[Tensor, "#B #out n"], length: Int64[Tensor, " B"], out: int, interpolation: Interpolation
) -> Float[Tensor, "B out n"]:
    """Weights of pixels at `place` in a stretch of `length` pixels that is resized to `out`."""
    center, stretch, first, end = _reach(length, out, interpolation)
    # Distances from pixel middles, in units of the widened filter.
    x = ((place - center + 0.5) / stretch).abs()
    if interpolation == "bicubic":  # Keys' cubic with a = -0.5
        near = (1.5 * x - 2.5) * x * x + 1
        far = ((-0.5 * x + 2.5) * x - 4) * x + 2
        weight = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    else:
        weight = (1 - x).clamp(min=0)
    weight = weight * ((place >= first) & (place < end))
    # What a filter loses beyond the border goes to the rest: it sees the edge no darker.
    return weight / weight.sum(2, keepdim=True)


def crop_resize_one(
    picture: Shaped[Tensor, "C H W"],
    box: Int64[Tensor, " 4"],
    flip: bool,
    size: tuple[int, int],
    interpolation: Interpolation = "bicubic",
    values: Values = Values(),
) -> UInt8[Tensor, "C h w"] | Float[Tensor, "C h w"]:
    """One box of one picture on the CPU, resized with antialiasing: the way of the workers.

    8-bit pictures in uint8 arithmetic; all others become `values.levels` in float32, NaN where most of what a pixel
    sees has no data.
    """
    top, left, height, width = box.tolist()
    # A view of memory: cutting first copies nothing, and only the box is resampled.
    view = picture[:, top : top + height, left : left + width]
    if not values.plain:
        view = _resized_levels(values.levels(view), size, interpolation, values.holes)
    elif (height, width) != size:
        view = interpolate(view.unsqueeze(0), size, mode=interpolation, antialias=True, align_corners=False)[0]
    return view.flip(2) if flip else view


def crop_beyond(
    picture: Shaped[Tensor, "C H W"],
    box: Int64[Tensor, " 4"],
    flip: bool,
    size: tuple[int, int],
    interpolation: Interpolation = "bicubic",
    values: Values = Values(),
) -> UInt8[Tensor, "C h w"] | Float[Tensor, "C h w"]:
    """As `crop_resize_one`, of a box that may leave the picture: gray (128) there in 8-bit pictures, else no data."""
    top, left, height, width = box.tolist()
    inside = torch.tensor([max(top, 0), max(left, 0), min(top + height, picture.shape[1]), 0])
    inside[3] = min(left + width, picture.shape[2])
    start, end = inside[:2], inside[2:]
    if (end - start == box[2:]).all():
        return crop_resize_one(picture, box, flip, size, interpolation, values)
    zoom = torch.tensor(size) / box[2:]
    to = torch.cat([(start - box[:2]) * zoom, (end - box[:2]) * zoom]).round().int().tolist()
    dtype, empty = (torch.uint8, 128) if values.plain else (torch.float32, torch.nan)
    view = torch.full((picture.shape[0], *size), empty, dtype=dtype)
    if to[2] > to[0] and to[3] > to[1]:
        visible = torch.cat([start, end - start])
        shape = (to[2] - to[0], to[3] - to[1])
        view[:, to[0] : to[2], to[1] : to[3]] = crop_resize_one(picture, visible, False, shape, interpolation, values)
    return view.flip(2) if flip else view
