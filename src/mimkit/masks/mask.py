"""Mask: which patches of each picture are hidden. Scores enter, one value that every other part understands leaves."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

_SEEN = 0.5  # share of a patch that must have data, or nobody sees it


@dataclass(frozen=True)
class Mask:
    """Hidden patches of `B` pictures in `K` parallel views; rows `b*K .. b*K+K-1` belong to picture `b`.

    `hidden` is the truth. `visible` lists slots for gathering, in no particular order; when `ragged`, pictures with
    fewer visible patches than slots fill the surplus with hidden positions (see `padding`). `decoded` lists the places
    that a decoder runs over, None for all: the others are thrown away, nobody sees or predicts them. Hidden, thrown
    and visible patches are together all N. `alike`: each picture weighs alike in a loss, since a masker hid unequally
    many patches. `measured` is the share of each patch that has data, None where all have. `asked` are `M` blocks of
    `T` places, each to be predicted by itself, None for all hidden patches as one block (see `blocks`).
    """

    hidden: Bool[Tensor, "BK N"]
    visible: Int64[Tensor, "BK V"]
    views: int = 1
    ragged: bool = False
    decoded: Int64[Tensor, "BK M"] | None = None
    alike: bool = False
    measured: Float[Tensor, "BK N"] | None = None
    asked: Int64[Tensor, "BK M T"] | None = None

    def __post_init__(self) -> None:
        plain = self.measured is None
        assert self.decoded is None or not (self.ragged and plain), "thrown patches have no surplus slots"

    @staticmethod
    def from_scores(
        scores: Float[Tensor, "BK N"],
        hide: "int | Int64[Tensor, ' BK']",
        *,
        throw: int = 0,
        least: int | None = None,
        views: int = 1,
    ) -> "Mask":
        """Hide the patches with the highest scores.

        Args:
            scores: one score a patch; ties are broken by position.
            hide: how many to hide, the same number for all rows or one for each row.
            throw: how many of the next highest to throw away; only with the same number for all rows.
            least: with one number a row, the smallest that can occur; it fixes the number of slots without reading
                the device.
            views: parallel views `K`.
        """
        n = scores.shape[1]
        order = scores.argsort(dim=1, stable=True)  # stable: devices agree on ties
        if isinstance(hide, int):
            assert throw >= 0, throw
            if not 0 <= hide < n - throw:
                thrown = f" and throw away {throw}" if throw else ""
                raise ValueError(f"cannot hide {hide}{thrown} of {n} patches: at least one must stay visible")
            visible, _, hide_at = order.split([n - throw - hide, throw, hide], dim=1)
            hidden = torch.zeros_like(scores, dtype=torch.bool).scatter(1, hide_at, True)
            return Mask(hidden, visible, views, decoded=torch.cat([visible, hide_at], dim=1) if throw else None)
        assert throw == 0, "patches are thrown away in the same number from all rows"
        if least is None or not 0 <= least < n:
            raise ValueError(f"a number of hidden patches per row needs 0 <= least < {n}, got {least}")
        # Numbers that differ from row to row, in tensors of one shape: a row with fewer visible patches than slots has
        # hidden ones at its end, which `padding` tells apart.
        shown = torch.arange(n, device=scores.device) < (n - hide.clamp(least, n - 1)).unsqueeze(1)
        hidden = torch.ones_like(scores, dtype=torch.bool).scatter(1, order, ~shown)
        return Mask(hidden, order[:, : n - least], views, ragged=True, alike=True)

    def without_holes(self, measured: Float[Tensor, "B N"]) -> "Mask":
        """The same mask with patches hidden of which less than half has data; one of each row stays visible.

        Args:
            measured: the share of each patch that has data.
        """
        measured = self.repeat(measured)
        blank = measured < _SEEN
        # The visible patch with most data stays: attention over nothing is NaN.
        best = self.visible.gather(1, self.take(measured).masked_fill(self.padding, -1.0).argmax(dim=1, keepdim=True))
        blank = blank.scatter(1, best, False) & ~self.thrown
        blocks = self.asked
        if blocks is not None:  # surplus slots must point at what stays visible
            blocks = torch.where(self.at_blocks(self.hidden), blocks, best.unsqueeze(2))
        return replace(self, hidden=self.hidden | blank, ragged=True, measured=measured, asked=blocks)

    @property
    def counted(self) -> Bool[Tensor, "BK N"] | Float[Tensor, "BK N"]:
        """How much each patch counts in a loss: hidden ones, as far as they have data."""
        return self.hidden if self.measured is None else self.hidden * self.measured

    @property
    def padding(self) -> Bool[Tensor, "BK V"]:
        """Slots that hold no visible patch; all False unless `ragged`."""
        return self.hidden.gather(1, self.visible)

    @property
    def thrown(self) -> Bool[Tensor, "BK N"]:
        """Patches thrown away: not encoded, not decoded, no loss (AMT, arXiv:2211.15362)."""
        if self.decoded is None:
            return torch.zeros_like(self.hidden)
        return torch.ones_like(self.hidden).scatter(1, self.decoded, False)

    @property
    def blocks(self) -> Int64[Tensor, "BK M T"]:
        """Places to predict, block by block; a surplus slot points at a patch that is not hidden."""
        if self.asked is not None:
            return self.asked
        n = self.hidden.shape[1]
        slots = n if self.ragged else (n if self.decoded is None else self.decoded.shape[1]) - self.visible.shape[1]
        return self.hidden.byte().argsort(dim=1, descending=True, stable=True)[:, None, :slots]

    def at_blocks(self, x: Shaped[Tensor, "BK N *rest"]) -> Shaped[Tensor, "BK M T *rest"]:
        """The rows of `x` at the places of each block."""
        blocks = self.blocks
        return _gather(x, blocks.flatten(1)).unflatten(1, blocks.shape[1:])

    def repeat(self, x: Shaped[Tensor, "B *rest"]) -> Shaped[Tensor, "BK *rest"]:
        """Bring something per picture to the mask's rows; the identity for one view."""
        return x if self.views == 1 else x.repeat_interleave(self.views, dim=0)

    def take(self, x: Shaped[Tensor, "BK N *rest"]) -> Shaped[Tensor, "BK V *rest"]:
        """The rows of `x` at the visible slots."""
        return _gather(x, self.visible)

    def put(self, visible: Shaped[Tensor, "BK V D"], elsewhere: Shaped[Tensor, "#BK #N D"]) -> Shaped[Tensor, "BK N D"]:
        """Visible values at their places and `elsewhere` where patches are hidden or thrown; undoes `take`."""
        rows, n = self.hidden.shape
        # The full sequence first, then visible values over it: no inverse permutation is needed or kept.
        full = elsewhere.to(visible.dtype).expand(rows, n, -1)
        if self.ragged:  # a surplus slot points at a hidden place: it must write what stands there already
            visible = torch.where(self.padding.unsqueeze(-1), self.take(full), visible)
        return full.scatter(1, self.visible.unsqueeze(-1).expand(-1, -1, visible.shape[-1]), visible)

    def take_decoded(self, x: Shaped[Tensor, "BK N *rest"]) -> Shaped[Tensor, "BK M *rest"]:
        """The rows of `x` that a decoder runs over; the identity when nothing is thrown away."""
        return x if self.decoded is None else _gather(x, self.decoded)

    def put_decoded(self, x: Shaped[Tensor, "BK M D"]) -> Shaped[Tensor, "BK N D"]:
        """A decoder's rows at their places and zeros where patches are thrown; undoes `take_decoded`."""
        if self.decoded is None:
            return x
        # Zeros, not garbage: they meet a loss whose weight there is 0, and 0 times NaN is NaN.
        full = x.new_zeros(*self.hidden.shape, x.shape[2])
        return full.scatter(1, self.decoded.unsqueeze(-1).expand_as(x), x)


def _gather(x: Shaped[Tensor, "B N *rest"], index: Int64[Tensor, "B M"]) -> Shaped[Tensor, "B M *rest"]:
    # gather wants an index for each number; expanded, it takes no memory.
    index = index.reshape(index.shape + (1,) * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
    return x.gather(1, index)
