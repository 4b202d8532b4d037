"""Masks of several views of each picture at once. Noise enters, one Mask of K rows a picture leaves."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mimkit.core.errors import UserError, at_least
from mimkit.core.randomness import uniform
from mimkit.masks.informed import choice
from mimkit.masks.mask import Mask
from mimkit.masks.masker import Masker, Progress
from mimkit.masks.random import check_ratio, hidden_count


@dataclass(frozen=True, kw_only=True)
class PartitionMasker(Masker):
    """K views of each picture that each show N / K of its N patches; rows b*K .. b*K+K-1 belong to picture b.

    Source: EMAE (Li et al., arXiv:2302.14431). `parallel` cuts one permutation of the patches into K slices, one for
    each view: every patch is visible in exactly one view, and two views hide N (K - 2) / K patches in common.
    `independent` draws K random masks that show as many each, EMAE's ablation; they overlap and leave gaps.

    Raises (when called): UserError where `parts` does not divide the number of patches.
    """

    parts: int = 4
    """Views K of each picture; each hides a share of 1 - 1 / K."""
    mode: str = "parallel"
    """How views relate: `parallel` (they partition the patches) or `independent`."""
    throw: float = 0.0
    """Share of patches that each parallel view throws away, about: it neither sees nor predicts them. Views that hide a
    patch predict it all or none, so that as many as possible can be compared."""

    def __post_init__(self) -> None:
        at_least(2, **{"masker.parts": self.parts})
        choice("mode", self.mode, ("parallel", "independent"))
        if not 0 <= self.throw < 1 - 1 / self.parts:
            raise UserError(
                f"masker.throw {self.throw} of {self.parts} parts, which hide {1 - 1 / self.parts:.3g}, must leave "
                "patches to predict"
            )
        if self.throw and self.mode == "independent":
            raise UserError("masker.throw is of parallel parts: leave it, or masker.mode independent, out")

    def __call__(
        self,
        score_maps: Float[Tensor, "B N M"],
        rng_keys: Int64[Tensor, " B"],
        progress: Progress,
        grid: tuple[int, int],
    ) -> Mask:
        n, parts = grid[0] * grid[1], self.parts
        if n % parts:
            raise UserError(f"masker.parts must divide the {n} patches of a picture, got {parts}{dividing(n, parts)}")
        if self.mode == "independent":
            return Mask.from_scores(uniform(rng_keys, parts * n).reshape(-1, n), n - n // parts, views=parts)
        # One permutation cut into K pieces is K rows of a matrix: no patch can be in two of them.
        visible = uniform(rng_keys, n).argsort(dim=1, stable=True).reshape(-1, n // parts)
        hidden = torch.ones(len(visible), n, dtype=torch.bool, device=rng_keys.device).scatter(1, visible, False)
        if not self.throw:
            return Mask(hidden, visible, parts)
        # Of each part the same few patches are predicted by all views but the one that sees it.
        each = max(1, int(n * (1 - 1 / parts - self.throw)) // (parts - 1))
        few = visible.unflatten(0, (-1, parts))[..., :each]  # (B, K, each)
        others = [few[:, [k for k in range(parts) if k != view]].flatten(1) for view in range(parts)]
        predicted = torch.stack(others, dim=1).flatten(0, 1)
        hidden = torch.zeros_like(hidden).scatter(1, predicted, True)
        return Mask(hidden, visible, parts, decoded=torch.cat([visible, predicted], dim=1))


@dataclass(frozen=True, kw_only=True)
class ComplementaryMasker(Masker):
    """Two views of each picture: the first hides a random share of the patches, the second exactly the others.

    EMAE names such a pair in an ablation without saying how it was made (arXiv:2302.14431); this is our reading. The
    views show different numbers of patches unless the first hides half, so encoders pad.

    Raises (when called): UserError on a grid of one patch.
    """

    ratio: float = 0.75  # type: ignore[bad-override]
    """Share that the first view hides and the second shows, 0 < ratio < 1."""

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    def __call__(
        self,
        score_maps: Float[Tensor, "B N M"],
        rng_keys: Int64[Tensor, " B"],
        progress: Progress,
        grid: tuple[int, int],
    ) -> Mask:
        n = grid[0] * grid[1]
        if n == 1:
            raise UserError("two views cannot share a single patch: use larger images or smaller patches")
        first = max(1, hidden_count(n, self.ratio))
        # ranks, not noise: equal noise would otherwise be ordered alike in both views, which then overlap
        rank = uniform(rng_keys, n).argsort(dim=1, stable=True).argsort(dim=1)
        scores = torch.stack((rank, n - 1 - rank), dim=1).flatten(0, 1).float()
        if 2 * first == n:
            return Mask.from_scores(scores, first, views=2)
        # Rows of a picture stand side by side: even ones are first views, odd ones second views.
        hide = torch.where(torch.arange(len(scores), device=rng_keys.device) % 2 == 0, first, n - first)
        return Mask.from_scores(scores, hide, least=min(first, n - first), views=2)


def dividing(n: int, parts: int) -> str:
    """The numbers of parts nearest to `parts` that do divide `n`, as the end of a message."""
    below = [d for d in range(2, parts) if n % d == 0][-1:]
    above = [d for d in range(parts + 1, n + 1) if n % d == 0][:1]
    return f": use {' or '.join(map(str, below + above))}" if below or above else ": use more patches"
