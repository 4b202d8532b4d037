"""Normalized cut: features of patches enter, a cut of every picture into two sides leaves, and which is the object.

A picture is a graph: patches are its vertices, w_ij its weights, from cosines. The cut comes from the second largest
eigenpair of P = D^{-1/2} W D^{-1/2} (Shi and Malik 2000); the largest, mu = 1 with v ~ D^{1/2} 1, is known exactly
and is kept out everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from mimkit.core.errors import at_least
from mimkit.core.randomness import integer, uniform
from mimkit.masks.informed import choice

AFFINITIES = ("shift", "clamp", "binary")
SOLVERS = ("lanczos", "eigh")
RULES = ("argmax", "smaller", "border")

_START = integer("ncut")  # of the Lanczos vectors: the same for every picture, so a cut depends on nothing else
_LEAST = 1e-5  # weight of patches that are not connected; TokenCut's
_NOISE = 1e-6  # a direction shorter than this is rounding
_ROUNDS = 3  # of the power 128: tells two eigenvalues apart that differ by about 2^-21 of the spectrum


@dataclass(frozen=True)
class Cut:
    """Each picture's patches in two sides, and how sure that is. No order of the sides means anything."""

    side: Bool[Tensor, "B N"]
    """y > mean(y)."""
    vector: Float[Tensor, "B N"]
    """y = D^{-1/2} v with |v| = 1 and sum_i d_i y_i = 0; the sign makes the entry of largest size positive."""
    eigenvalue: Float[Tensor, " B"]
    """mu_2 of P, in [0, 1]: 1 for a graph in two pieces, 0 for patches all alike. Ncut(side) >= 1 - mu_2."""
    gap: Float[Tensor, " B"]
    """mu_2 - mu_3: near 0 another cut is as good. Lanczos sees an eigenvalue that occurs twice only once."""
    residual: Float[Tensor, " B"]
    """|P v - mu_2 v|: distance from mu_2 to the nearest eigenvalue at most; above mu_2 / 20, raise `iterations`."""


@torch.no_grad()
def ncut(
    features: Float[Tensor, "B N D"],
    *,
    affinity: str = "shift",
    threshold: float = 0.2,
    solver: str = "lanczos",
    iterations: int = 16,
) -> Cut:
    """Cut every picture's patches in two by Ncut, in float32 whatever the type of the features, without gradient.

    Args:
        features: one vector a patch, N >= 2, of any length; only cosines matter.
        affinity: `shift`, w = (1 + cos) / 2; `clamp`, w = max(cos, 1e-5); or `binary`, w = 1 where cos > `threshold`
            and 1e-5 elsewhere (YangtaoWANG95/TokenCut:object_discovery.py), which for features that are all alike
            connects everything and leaves noise.
        threshold: cosine, of `binary` alone.
        solver: `lanczos`, products with vectors, which never waits for a GPU and compiles as one graph; or
            `eigh`, the full decomposition, exact and slower.
        iterations: of Lanczos; 12 agree with `eigh` in all but hard cases.

    Raises:
        UserError: a name that is none of these, or fewer than 1 iteration.

    Source: TokenCut (Wang et al. 2022, section 3) for the cut at the mean; Self-Guided MAE (Shin et al. 2024,
    section 4) for its use, silent on negative cosines, hence `shift`: they would make degrees negative.
    """
    choice("affinity", affinity, AFFINITIES)
    choice("solver", solver, SOLVERS)
    at_least(1, iterations=iterations)
    with torch.autocast(features.device.type, enabled=False):
        x = features.float()
        weights = None
        # From two patches a channel on, a product with W is no cheaper than two with the features.
        if affinity == "shift" and solver == "lanczos" and x.shape[1] >= 2 * x.shape[2]:
            weigh = _by_features(F.normalize(x, dim=-1))
        else:
            weights = _weights(x, affinity, threshold)
            weigh = _by_matrix(weights)
        # The row sums of W, by the same product that everything else goes through.
        degree = weigh(torch.ones_like(x[..., 0]))
        scale = degree.rsqrt()
        # Known in closed form, so it need not be found; what is found would be it, as its eigenvalue is the largest.
        trivial = F.normalize(degree.sqrt(), dim=-1)

        if solver == "eigh" and weights is not None:
            # The trivial eigenvector goes from 1 to -1, the bottom of the spectrum, so that the second comes last.
            p = scale.unsqueeze(2) * weights * scale.unsqueeze(1) - 2 * trivial.unsqueeze(2) * trivial.unsqueeze(1)
            values, vectors = torch.linalg.eigh(p)
            v, second, third = vectors[..., -1], values[:, -1], values[:, -2]
        else:
            v, second, third = _lanczos(lambda q: scale * weigh(scale * q), trivial, iterations)

        # Found by a product with P itself, not with the small matrix of Lanczos: it also tells what that missed.
        residual = (scale * weigh(scale * v) - second.unsqueeze(1) * v).norm(dim=1)
        y = scale * v
        y = torch.where(y.gather(1, _largest(y)) < 0, -y, y)  # an eigenvector has no sign of its own
        return Cut(y > y.mean(dim=1, keepdim=True), y, second, second - third, residual)


@torch.no_grad()
def object_side(cut: Cut, grid: tuple[int, int], rule: str = "argmax") -> Bool[Tensor, "B N"]:
    """The side of each picture's cut that is taken for its object; never empty.

    Args:
        cut: of the `N = grid[0] * grid[1]` patches, row-major.
        grid: rows and columns of patches.
        rule: `argmax`, the side of the entry of largest size (TokenCut), as a rule the smaller; `smaller`, the side
            of fewer patches; `border`, the side with fewer patches on the border of the grid. Ties go to `argmax`.

    Raises:
        UserError: a rule that is none of these.
    """
    choice("rule", rule, RULES)
    rows, columns = grid
    assert cut.side.shape[1] == rows * columns
    # The side on which that entry lies, whichever of the two is called True.
    side = cut.side == cut.side.gather(1, _largest(cut.vector))
    if rule == "argmax":
        return side
    # Both other rules take the side that has fewer of the patches that count.
    counted = torch.ones(grid, dtype=torch.bool, device=side.device)
    if rule == "border":
        counted[1:-1, 1:-1] = False
    counted = counted.flatten()
    return side ^ ((side & counted).sum(dim=1) > (~side & counted).sum(dim=1)).unsqueeze(1)


def _largest(y: Tensor) -> Tensor:
    return y.abs().argmax(dim=1, keepdim=True)


def _weights(x: Tensor, affinity: str, threshold: float) -> Tensor:
    w = x @ x.mT
    # Cosines by dividing N x N products, in place: as a rule features are more numbers than that.
    unit = w.diagonal(dim1=1, dim2=2).sqrt().clamp_min(1e-12).reciprocal()  # 1e-12 as in F.normalize
    w = w.mul_(unit.unsqueeze(2)).mul_(unit.unsqueeze(1))
    if affinity == "shift":
        return w.mul_(0.5).add_(0.5)
    if affinity == "clamp":
        return w.clamp_min_(_LEAST)
    return torch.where(w > threshold, 1.0, _LEAST)


def _by_matrix(weights: Tensor) -> Callable[[Tensor], Tensor]:
    """z to W z."""
    return lambda z: (z.unsqueeze(1) @ weights).squeeze(1)


def _by_features(unit: Tensor) -> Callable[[Tensor], Tensor]:
    """z to W z for `shift` without an N x N matrix: 2ND products, where that is no more than N^2."""

    def weigh(z: Tensor) -> Tensor:
        z = z.unsqueeze(1)
        return (z.sum(dim=2) + (unit @ (z @ unit).mT).squeeze(2)) / 2

    return weigh


def _lanczos(
    apply: Callable[[Tensor], Tensor], trivial: Float[Tensor, "B N"], iterations: int
) -> tuple[Float[Tensor, "B N"], Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Lanczos with full reorthogonalization beside `trivial`: the top Ritz vector and the top two Ritz values.

    P q has parts along the last two vectors alone, but for rounding: they are taken away by the recurrence, what
    rounding leaves along any vector by one pass over all of them. That is as good as two passes.

    When the space is used up before the iterations are (few patches, or blocks), the rows that remain are zero and
    so are their Ritz values, to 1e-6. That is no harm: with w_ii >= |w_ij| the second eigenvalue is never negative.
    """
    b, n = trivial.shape
    key = torch.full((), _START, dtype=torch.int64, device=trivial.device)
    # `trivial` is the first vector of the basis, so everything after it is orthogonal to the eigenvector of mu = 1,
    # and the largest Ritz value is the second of P.
    basis = trivial.new_zeros(b, iterations + 1, n)
    basis[:, 0] = trivial
    # A fixed vector of noise: it has a part along every eigenvector, almost surely, and the same for every picture.
    w = uniform(key, n) - 0.5
    w = w - (w * trivial).sum(dim=1, keepdim=True) * trivial
    # The numbers of the tridiagonal matrix that P is in this basis.
    q, diagonal, beside = trivial, [], []
    for i in range(iterations):
        basis_so_far, w = basis[:, : i + 1], w.unsqueeze(1)
        w = torch.baddbmm(w, w @ basis_so_far.mT, basis_so_far, alpha=-1).squeeze(1)
        length = w.norm(dim=1, keepdim=True)
        # A direction that is only rounding is divided by infinity: a zero row instead of noise, without a branch.
        before, q = q, w / F.threshold(length, _NOISE, torch.inf)
        basis[:, i + 1] = q
        beside.append(F.threshold(length, _NOISE, 0.0))
        w = apply(q)
        diagonal.append((q * w).sum(dim=1, keepdim=True))
        w = torch.addcmul(w, diagonal[-1], q, value=-1)
        if i:
            w = torch.addcmul(w, beside[-1], before, value=-1)
    # float64 costs nothing in matrices this small, and keeps eigenvalues apart that float32 would merge.
    off = torch.cat(beside, dim=1).double()
    # A zero row must not look better than a true eigenvalue 0, that rounding makes negative.
    t = torch.diag_embed(torch.cat(diagonal, dim=1).double() - _NOISE * (off == 0))
    t = t + torch.diag_embed(off[:, 1:], 1) + torch.diag_embed(off[:, 1:], -1)
    s, second, third = (_top_two if t.device.type == "cpu" and iterations > 1 else _top_two_by_squaring)(t)
    v = F.normalize((s.float().unsqueeze(1) @ basis[:, 1:]).squeeze(1), dim=1)
    return v, second.float(), third.float()


def _top_two(t: Float[Tensor, "B M M"]) -> tuple[Float[Tensor, "B M"], Float[Tensor, " B"], Float[Tensor, " B"]]:
    """The largest eigenpair of small symmetric matrices and the second eigenvalue, M >= 2.

    `eigh` raises where a number is not finite. There the vector of the cut is not finite either, which is enough.
    """
    values, vectors = torch.linalg.eigh(t.nan_to_num(0.0, 0.0, 0.0))
    return vectors[..., -1], values[:, -1], values[:, -2]


def _top_two_by_squaring(
    t: Float[Tensor, "B M M"],
) -> tuple[Float[Tensor, "B M"], Float[Tensor, " B"], Float[Tensor, " B"]]:
    """As `_top_two`, for devices for which `eigh` would make the host wait."""
    # Gershgorin: no eigenvalue lies below `floor`, so above it the largest is also the largest in size.
    floor = (2 * t.diagonal(dim1=1, dim2=2) - t.abs().sum(dim=2)).amin(dim=1)
    eye = torch.eye(t.shape[1], dtype=t.dtype, device=t.device)
    # Shifted, so that powers grow towards the largest eigenvalue and not the one of largest size.
    t = t - floor.view(-1, 1, 1) * eye
    s, first = _top(t)
    # Without its first eigenpair the matrix has the second as its largest.
    _, second = _top(t - first.view(-1, 1, 1) * s.unsqueeze(2) * s.unsqueeze(1))
    return s, first + floor, second + floor


def _top(t: Float[Tensor, "B M M"]) -> tuple[Float[Tensor, "B M"], Float[Tensor, " B"]]:
    """The largest eigenpair of positive semi-definite matrices; of zero, the first unit vector."""
    # The columns of a high power point along the top eigenvector: products do what eigh would, without leaving a GPU.
    power = t + 1e-30 * torch.eye(t.shape[1], dtype=t.dtype, device=t.device)  # a zero matrix has a power too
    for _ in range(_ROUNDS):
        # To length 1 before each power, which would else overflow.
        power = power / power.norm(dim=(1, 2), keepdim=True)
        power = torch.linalg.matrix_power(power, 128)
    best = power.diagonal(dim1=1, dim2=2).argmax(dim=1)  # the longest column, which rounding hurts least
    s = power.gather(2, best.view(-1, 1, 1).expand(-1, t.shape[1], 1)).squeeze(2)
    s = s / s.norm(dim=1, keepdim=True)  # of several equal eigenvalues the power is tiny: no epsilon
    return s, (s * (t @ s.unsqueeze(2)).squeeze(2)).sum(dim=1)
