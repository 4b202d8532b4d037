"""Structured masks: units, squares, blocks and grids. Noise and the shape of the grid enter, a Mask leaves."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mimkit.core.errors import UserError, at_least
from mimkit.core.randomness import uniform
from mimkit.masks.mask import Mask
from mimkit.masks.masker import Masker, Progress
from mimkit.masks.random import check_ratio, hidden_count

ATTEMPTS = 40  # blocks tried for each picture; 99 of 100 pictures of BEiT's own loop need fewer up to a ratio of 0.75
PATIENCE = 10  # failed attempts in a row after which BEiT gives a picture up


@dataclass(frozen=True, kw_only=True)
class SimMIMMasker(Masker):
    """SimMIM's random masks (Xie et al. 2022, section 3.2): patches are hidden together in units of unit x unit.

    Hides `ceil(units * ratio)` units, of exact products, and leaves at least one: 22 of 36 units at 0.6. SimMIM's
    units have 32 pixels (`microsoft/SimMIM:data/data_simmim.py`).

    Raises (when called): UserError where `unit` does not divide the grid into at least two units.
    """

    ratio: float = 0.6  # type: ignore[bad-override]
    """Share of hidden units, 0 < ratio < 1."""
    unit: int = 2
    """Side of a unit in patches."""

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        at_least(1, **{"masker.unit": self.unit})

    def __call__(
        self,
        score_maps: Float[Tensor, "B N M"],
        rng_keys: Int64[Tensor, " B"],
        progress: Progress,
        grid: tuple[int, int],
    ) -> Mask:
        rows, columns = units(grid, self.unit)
        count = rows * columns
        hide = math.ceil(round(count * self.ratio, 9))  # rounded, as 25 * 0.28 is 7.000000000000001
        hide = min(max(1, hide), count - 1)
        hidden = Mask.from_scores(uniform(rng_keys, count), hide).hidden.unflatten(1, (rows, columns))
        return of_patches(enlarge(hidden, self.unit), hide * self.unit**2)


@dataclass(frozen=True, kw_only=True)
class SquareMasker(Masker):
    """One hidden square at a random place (SimMIM's ablation, section 4.1.2), the same size for every picture.

    On a grid that is not square it has the grid's proportions. Its sides are `sqrt(ratio)` of the grid's, rounded to
    whole units, and leave at least one row and one column of units visible, so the share that is hidden comes near
    `ratio` only on a fine grid: 81 of 144 patches at 0.6. Patches near the center are hidden most often.

    Raises (when called): UserError where `unit` does not divide the grid into at least two units.
    """

    ratio: float = 0.6  # type: ignore[bad-override]
    """Share of the area to hide, about, 0 < ratio < 1."""
    unit: int = 1
    """The square's sides and place are multiples of this many patches."""

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        at_least(1, **{"masker.unit": self.unit})

    def __call__(
        self,
        score_maps: Float[Tensor, "B N M"],
        rng_keys: Int64[Tensor, " B"],
        progress: Progress,
        grid: tuple[int, int],
    ) -> Mask:
        rows, columns = units(grid, self.unit)
        height = self._length(rows)
        width = self._length(columns)
        place = uniform(rng_keys, 2)
        top = (place[:, 0] * (rows - height + 1)).floor()
        left = (place[:, 1] * (columns - width + 1)).floor()
        hidden = between(top, top + height, rows).unsqueeze(2) & between(left, left + width, columns).unsqueeze(1)
        return of_patches(enlarge(hidden, self.unit), height * width * self.unit**2)

    def _length(self, side: int) -> int:
        """The square's extent along a side of so many units; halves are rounded up, where `round` would go to even."""
        return max(1, min(side - 1, math.floor(side * math.sqrt(self.ratio) + 0.5)))


@dataclass(frozen=True, kw_only=True)
class BlockMasker(Masker):
    """BEiT's block-wise masks (Bao et al. 2022, algorithm 1): overlapping rectangles until enough is hidden.

    Each attempt draws an area between `least` and what remains to be hidden, an aspect ratio (log-uniform) and a
    place; it counts if the rectangle is lower and narrower than the grid and hides something new, but not too much.
    A picture is given up after 10 failures in a row (`microsoft/unilm:beit/masking_generator.py`), or after 40
    attempts in all, so that the work is the same for every picture. As many patches are aimed at as RandomMasker
    hides; BEiT's 75 of 196 are a ratio of 0.38.

    Raises (when called): UserError on a grid of one patch.
    """

    ratio: float = 0.4  # type: ignore[bad-override]
    """Share of patches to hide, 0 < ratio < 1."""
    least: int = 16
    """Smallest area drawn, in patches; at most the number to hide, and on grids with a side below 12 at most the
    square of a third of that side (4 for 8 x 8, 1 below 6 x 6), which is iBOT's rule."""
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    """Lowest and highest ratio of height to width."""
    exact: bool = True
    """Fill up what the rectangles leave with patches beside hidden ones, so that all pictures hide the same number.
    If not, pictures hide that many or, as in BEiT, fewer, but at least one; encoders then pad."""
    spread: float = 0.0
    """Each picture has a ratio of its own, drawn evenly from `ratio` - `spread` to `ratio` + `spread`, and aims at that
    many patches, rounded down: 0.3 and 0.2 in iBOT (bytedance/ibot:loader.py)."""
    none: float = 0.0
    """Share of pictures, drawn, of which nothing is hidden; iBOT's 0.5."""

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        at_least(1, **{"masker.least": self.least})
        if not (self.spread >= 0 and self.ratio - self.spread > 0 and self.ratio + self.spread < 1):
            raise UserError(f"masker.ratio {self.ratio} +- masker.spread {self.spread} must stay between 0 and 1")
        if not 0 <= self.none < 1:
            raise UserError(f"masker.none is a share of pictures from 0 to below 1, got {self.none}; iBOT uses 0.5")
        low, high = self.aspect
        if not 0 < low <= high < math.inf:
            raise UserError(f"masker.aspect goes from a number above 0 to one at least as large, got {self.aspect}")

    def __call__(
        self,
        score_maps: Float[Tensor, "B N M"],
        rng_keys: Int64[Tensor, " B"],
        progress: Progress,
        grid: tuple[int, int],
    ) -> Mask:
        rows, columns = units(grid, 1)
        n = rows * columns
        target = max(1, hidden_count(n, self.ratio))
        with torch.autocast(rng_keys.device.type, enabled=False):  # bfloat16 would merge the scores below
            least = min(self.least, max(1, (min(grid) // 3) ** 2), target)
            draws = uniform(rng_keys, 4 * ATTEMPTS).unflatten(1, (ATTEMPTS, 4))
            goals = self.goals(rng_keys, n, target)
            hidden = rectangles(draws, goals, rows, columns, least, *self.aspect)
            flat = hidden.flatten(1).float()
            # Nearness falls so fast with distance that a patch beside a hidden one, even with the least noise, comes
            # before any that touches hidden ones at corners alone; the last term orders those far from everything.
            # Sums over all hidden patches at once, a product of (B, N) and (N, N).
            nearness = flat @ nearnesses(grid, rng_keys.device)
            noise = uniform(rng_keys, n, stream=1)
            scores = torch.where(hidden.flatten(1), 2.0**30, nearness * (1 + noise / 4) + 1e-30 * noise)
        alike = not (self.spread or self.none)
        if self.exact and alike:
            return Mask.from_scores(scores, target)
        fewest = 0 if self.none else 1
        return Mask.from_scores(scores, goals.long() if self.exact else hidden.sum(dim=(1, 2)), least=fewest)

    def goals(self, rng_keys: Int64[Tensor, " B"], patches: int, target: int) -> Float[Tensor, " B"]:
        """How many patches of each picture to hide, at most; whole numbers where all have one ratio."""
        draws = uniform(rng_keys, 2, stream=2)
        goals = torch.full_like(draws[:, 0], target)
        if self.spread:
            goals = patches * (self.ratio - self.spread + 2 * self.spread * draws[:, 0])
        return goals * (draws[:, 1] >= self.none)


@dataclass(frozen=True, kw_only=True)
class GridMasker(Masker):
    """Of every cell of step x step patches one stays visible, at the same place in all cells of a picture.

    MAE's grid-wise sampling (He et al. 2022, section 4.1, figure 6): 0.75 are hidden with a step of 2. The place is
    drawn for each picture.

    Raises (when called): UserError where `step` does not divide the grid.
    """

    step: int = 2
    """Side of a cell in patches; a share of 1 - 1 / step^2 is hidden."""

    def __post_init__(self) -> None:
        at_least(2, **{"masker.step": self.step})

    def __call__(
        self,
        score_maps: Float[Tensor, "B N M"],
        rng_keys: Int64[Tensor, " B"],
        progress: Progress,
        grid: tuple[int, int],
    ) -> Mask:
        divided(grid, self.step, "masker.step", range(2, max(grid) + 1))
        rows, columns = grid
        place = (uniform(rng_keys, 2) * self.step).floor()
        row = torch.arange(rows, device=rng_keys.device) % self.step
        column = torch.arange(columns, device=rng_keys.device) % self.step
        hidden = (row != place[:, :1]).unsqueeze(2) | (column != place[:, 1:]).unsqueeze(1)
        return of_patches(hidden, rows * columns - rows * columns // self.step**2)


def divided(grid: tuple[int, int], side: int, setting: str, sides: range) -> None:
    """Refuse a side that does not divide the grid; the message names those of `sides` that do."""
    if grid[0] % side or grid[1] % side:
        # The message names what works, so that nobody has to compute it.
        fitting = [str(d) for d in sides if grid[0] % d == 0 and grid[1] % d == 0]
        fix = f"use {' or '.join(fitting)}, or another image size" if fitting else "use another image size"
        raise UserError(f"{setting} must divide the grid of {grid[0]} x {grid[1]} patches, got {side}: {fix}")


def units(grid: tuple[int, int], unit: int) -> tuple[int, int]:
    """How many units of unit x unit patches the grid has in height and width."""
    divided(grid, unit, "masker.unit", range(1, max(grid)))
    rows, columns = grid[0] // unit, grid[1] // unit
    if rows * columns == 1:
        fix = "use a smaller masker.unit" if unit > 1 else "use larger images or smaller patches"
        raise UserError(f"a grid of {grid[0]} x {grid[1]} patches is a single unit, which cannot be hidden: {fix}")
    return rows, columns


def enlarge(hidden: Bool[Tensor, "B rows columns"], unit: int) -> Bool[Tensor, "B height width"]:
    """Units as patches: each becomes unit x unit."""
    return hidden.repeat_interleave(unit, dim=1).repeat_interleave(unit, dim=2)


def between(first: Float[Tensor, " B"], end: Float[Tensor, " B"], side: int) -> Bool[Tensor, "B side"]:
    """Places on one side of the grid from `first` to before `end`."""
    place = torch.arange(side, device=first.device)
    return (place >= first.unsqueeze(1)) & (place < end.unsqueeze(1))


def of_patches(hidden: Bool[Tensor, "B rows columns"], count: int) -> Mask:
    """The mask that hides these patches, known to be `count` of each picture."""
    return Mask.from_scores(hidden.flatten(1).float(), count)


def nearnesses(grid: tuple[int, int], device: torch.device) -> Float[Tensor, "N N"]:
    """exp(-2 d^2) for the distances d of all pairs of patches, in patches."""
    row, column = torch.arange(grid[0], device=device), torch.arange(grid[1], device=device)
    down = (row[:, None] - row) ** 2
    right = (column[:, None] - column) ** 2
    squares = down[:, None, :, None] + right[None, :, None, :]  # (row, column) of one patch, then of the other
    return (-2.0 * squares).exp().flatten(2).flatten(0, 1)


# One operator of its own for torch.compile: written into the graph, the attempts take more than a minute to compile.
@torch.library.custom_op(
    "mimkit::rectangles",
    mutates_args=(),
    schema="(Tensor draws, Tensor goals, SymInt rows, SymInt columns, SymInt least, float low, float high) -> Tensor",
)
def rectangles(
    draws: Float[Tensor, "B attempts 4"],
    goals: Float[Tensor, " B"],
    rows: int,
    columns: int,
    least: int,
    low: float,
    high: float,
) -> Bool[Tensor, "B rows columns"]:
    """What BEiT's rectangles hide: at most its goal of each picture.

    Args:
        draws: for each attempt noise in [0, 1) for the area, the aspect ratio, and the place down and to the right.
        goals: patches to hide.
        rows, columns: the grid.
        least: smallest area in patches.
        low, high: the range of the aspect ratio, height to width.
    """
    stretch = (low * (high / low) ** draws[..., 1]).sqrt()  # log-uniform; each side takes the root of it
    # All pictures take each attempt together. One that has given up or is full goes along and accepts nothing, so
    # the loop has a fixed length and never asks the device how far it is.
    remaining = goals.clone()
    failures = torch.zeros_like(remaining)
    hidden = torch.zeros(len(draws), rows, columns, dtype=torch.bool, device=draws.device)
    for attempt in range(draws.shape[1]):
        area, _, down, right = draws[:, attempt].unbind(1)
        side = (least + area * (remaining - least)).sqrt()  # from remaining up to `least` once less remains
        height = (side * stretch[:, attempt]).round().clamp(min=1)
        width = (side / stretch[:, attempt]).round().clamp(min=1)
        # a grid of one row or column has no lower or narrower rectangle: there the full side counts too
        fits = (height <= max(1, rows - 1)) & (width <= max(1, columns - 1))
        top = (down * (rows - height + 1)).floor()
        left = (right * (columns - width + 1)).floor()
        block = between(top, top + height, rows).unsqueeze(2) & between(left, left + width, columns).unsqueeze(1)
        new = (block & ~hidden).sum(dim=(1, 2))
        accepted = fits & (new > 0) & (new <= remaining) & (failures < PATIENCE)
        hidden |= block & accepted[:, None, None]
        remaining -= new * accepted
        failures = (failures + 1) * ~accepted
    return hidden


@rectangles.register_fake
def _(draws, goals, rows, columns, least, low, high):
    return draws.new_empty(len(draws), rows, columns, dtype=torch.bool)
