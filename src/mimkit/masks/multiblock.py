"""I-JEPA's masks: visible context, blocks to predict. Noise and the shape of the grid enter, a Mask leaves."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mimkit.core.errors import UserError, at_least
from mimkit.core.randomness import uniform
from mimkit.masks.mask import Mask
from mimkit.masks.masker import Masker, Progress
from mimkit.masks.random import check_ratio, hidden_count

ATTEMPTS = 8  # arrangements tried for each picture before the one in which all target blocks lie on top of each other


@dataclass(frozen=True, kw_only=True)
class MultiBlockMasker(Masker):
    """I-JEPA's masks (Assran et al. 2023, arXiv:2301.08243; facebookresearch/ijepa:src/masks/multiblock.py).

    Blocks to predict, and a larger block, the context, of which what the former leave stays visible. Sizes are drawn
    from the progress of training, so that all pictures of a step have the same, whatever process and micro batch they
    are in; places are drawn for each picture. Every picture shows the same number of patches, drawn from its context:
    the authors cut all to the least of the batch, from the bottom, so that they show the top of pictures more often.
    Of eight arrangements a picture takes the first that leaves enough, else one with all target blocks in one place,
    and patches outside the context where even that leaves too few. `Mask.asked` has room for the largest block.

    Raises (when called): UserError where target blocks may leave fewer patches than shall be visible.
    """

    ratio: float = 0.73  # type: ignore[bad-override]
    """Share of patches that are not visible. The authors' is 0.73 on average on a grid of 16 x 16 with 128 pictures a
    process, and 0.8 on one of 8 x 8."""
    blocks: int = 4
    """Target blocks; on grids with a side below 8 fewer leave more context."""
    scale: tuple[float, float] = (0.15, 0.2)
    """Least and largest area of a target block, as a share of the picture."""
    aspect: tuple[float, float] = (0.75, 1.5)
    """Lowest and highest ratio of height to width of a target block."""
    context: tuple[float, float] = (0.85, 1.0)
    """Least and largest area of the context, which has the picture's proportions."""
    edge: bool = True
    """Blocks reach all places. False: the authors', in which no block ever reaches the last row and column."""
    one_draw: bool = False
    """The authors': one number decides area and aspect of target blocks, so that large ones are high."""

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        at_least(1, **{"masker.blocks": self.blocks})
        for name in ("scale", "context"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise UserError(f"masker.{name} goes from a share above 0 to one up to 1, got {(low, high)}")
        if not 0 < self.aspect[0] <= self.aspect[1] < math.inf:
            raise UserError(f"masker.aspect goes from a number above 0 to one at least as large, got {self.aspect}")

    def __call__(
        self,
        score_maps: Float[Tensor, "B N M"],
        rng_keys: Int64[Tensor, " B"],
        progress: Progress,
        grid: tuple[int, int],
    ) -> Mask:
        rows, columns = grid
        n, most = rows * columns, self.largest(grid)
        show = n - hidden_count(n, self.ratio)
        free = (n if self.edge else max(1, rows - 1) * max(1, columns - 1)) - most
        if show > free:
            raise UserError(
                f"masker.ratio {self.ratio} shows {show} of {n} patches and a target block of {most} leaves {free}: "
                "use a higher ratio, or larger images or smaller patches"
            )
        with torch.autocast(rng_keys.device.type, enabled=False):  # bfloat16 would merge scores and places
            target_size, context_size = self.sizes(progress, grid, rng_keys.device)
            draws = uniform(rng_keys, 2 * ATTEMPTS * (self.blocks + 1)).unflatten(1, (ATTEMPTS, self.blocks + 1, 2))
            draws = torch.cat([draws, draws[:, -1:, :1].expand(-1, -1, self.blocks + 1, -1)], dim=1)
            corners = self.corners(draws[:, :, 1:], target_size, grid)
            targets = covered(corners, target_size, grid).any(dim=2)
            context = covered(self.corners(draws[:, :, 0], context_size, grid), context_size, grid)
            enough = (context & ~targets).sum(dim=2) >= show
            enough[:, -1] = True
            order = torch.arange(ATTEMPTS + 1, 0, -1, device=enough.device)
            best = (enough * order).argmax(dim=1)[:, None, None]
            targets, context = (x.gather(1, best.expand(-1, -1, n)).squeeze(1) for x in (targets, context))
            # What is hidden first: targets, then what no block reaches, then what lies outside the context.
            scores = uniform(rng_keys, n, stream=1) + 4.0 * targets + ~context
            mask = Mask.from_scores(scores if self.edge else scores + 2.0 * self.beyond(grid, scores.device), n - show)
            corner = corners.gather(1, best.unsqueeze(3).expand(-1, -1, self.blocks, 2)).squeeze(1)
            return replace(mask, asked=places(corner, target_size, most, columns, mask.visible[:, :1, None]))

    def sizes(
        self, progress: Progress, grid: tuple[int, int], device: torch.device
    ) -> tuple[Float[Tensor, "2"], Float[Tensor, "2"]]:
        """Height and width of target blocks and of the context at this moment, in patches."""
        moment = progress if isinstance(progress, Tensor) else torch.full((), progress, device=device)
        # The bits of the progress are an address that all processes and micro batches of a step share.
        area, aspect, wide = uniform(moment.float().view(torch.int32).long(), 3).unbind()
        aspect = area if self.one_draw else aspect
        aspect = self.aspect[0] + aspect * (self.aspect[1] - self.aspect[0])
        (low, high), (least, largest) = self.scale, self.context
        proportions = torch.full_like(aspect, grid[0] / grid[1])
        return (
            block_size(low + area * (high - low), aspect, grid),
            block_size(least + wide * (largest - least), proportions, grid),
        )

    def largest(self, grid: tuple[int, int]) -> int:
        """The most patches that a target block can have."""
        n, most = grid[0] * grid[1], 1
        rows, columns = (max(1, side - 1) for side in grid)
        least, greatest = (math.floor(round(n * share, 6)) for share in self.scale)
        for area in range(max(1, least), greatest + 1):
            for height in range(1, math.floor(math.sqrt(area * self.aspect[1]) + 0.5) + 1):
                # The widest block that is so high; higher ones than the grid are cut.
                aspect = max(self.aspect[0], (height - 0.5) ** 2 / area)
                if aspect <= self.aspect[1]:
                    width = math.floor(math.sqrt(area / aspect) + 0.5)
                    most = max(most, min(height, rows) * min(width, columns))
        return most

    def corners(
        self, draws: Float[Tensor, "*B 2"], size: Float[Tensor, "2"], grid: tuple[int, int]
    ) -> Float[Tensor, "*B 2"]:
        """First row and column of blocks of this size."""
        sides = torch.stack([torch.full_like(size[0], side) for side in grid])
        return (draws * (sides - size + self.edge).clamp(min=1)).floor()

    def beyond(self, grid: tuple[int, int], device: torch.device) -> Bool[Tensor, " N"]:
        """The last row and column."""
        row, column = (torch.arange(side, device=device) == side - 1 for side in grid)
        return (row[:, None] | column).flatten()


def block_size(area: Float[Tensor, ""], aspect: Float[Tensor, ""], grid: tuple[int, int]) -> Float[Tensor, "2"]:
    """Height and width of a block of this share of the picture, lower and narrower than the grid."""
    patches = (grid[0] * grid[1] * area).floor().clamp(min=1)
    height, width = (patches * aspect).sqrt().round(), (patches / aspect).sqrt().round()
    return torch.stack([height.clamp(1, max(1, grid[0] - 1)), width.clamp(1, max(1, grid[1] - 1))])


def covered(corners: Float[Tensor, "*B 2"], size: Float[Tensor, "2"], grid: tuple[int, int]) -> Bool[Tensor, "*B N"]:
    """Which patches lie in blocks of this size."""
    sides = []
    for axis, side in enumerate(grid):
        place, first = torch.arange(side, device=corners.device), corners[..., axis, None]
        sides.append((place >= first) & (place < first + size[axis]))
    return (sides[0].unsqueeze(-1) & sides[1].unsqueeze(-2)).flatten(-2)


def places(
    corners: Float[Tensor, "B M 2"], size: Float[Tensor, "2"], most: int, columns: int, surplus: Int64[Tensor, "B 1 1"]
) -> Int64[Tensor, "B M T"]:
    """The patches of blocks of one size, row by row, in `most` slots; those beyond a block's area are `surplus`."""
    slot = torch.arange(most, device=corners.device)
    row, column = (slot / size[1]).floor(), slot % size[1]
    place = (corners[..., :1] + row) * columns + corners[..., 1:] + column
    return torch.where(slot < size[0] * size[1], place.long(), surplus)
