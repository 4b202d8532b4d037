"""Relations of patch tokens: tokens of a layer enter; how they spread, cluster and settle in training leaves."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def token_similarity(tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N N"]:
    """Cosines M_ij of all pairs of tokens, in [-1, 1]."""
    unit = F.normalize(tokens, dim=-1)
    return unit @ unit.mT


def feature_variance(tokens: Float[Tensor, "B N D"], where: Bool[Tensor, "B N"] | None = None) -> Float[Tensor, " B"]:
    """How far tokens of a picture point apart: mean of |u_i - mean u|^2 over unit tokens u = 1 - mean of all M_ij.

    In [0, 1]; 0 only if all are parallel. With `where`, of those tokens alone: of a decoder's hidden places it is the
    mask-token variance. NaN where none is chosen. Not monotone in training: random tokens already point apart.
    Expected: masked models above contrastive and supervised ones. Source: Self-Guided MAE (Shin et al. 2024,
    arXiv:2507.19773), whose formula is not known to us: ours, on unit tokens.
    """
    unit = F.normalize(tokens, dim=-1)
    if where is None:
        return 1 - unit.mean(dim=1).square().sum(dim=1)
    mean = (unit * where.unsqueeze(2)).sum(dim=1) / where.sum(dim=1, keepdim=True)
    return 1 - mean.square().sum(dim=1)


def similarity_variance(similarity: Float[Tensor, "B N N"]) -> Float[Tensor, " B"]:
    """Variance of the cosines M_ij over pairs i != j of a picture's tokens, at least 0.

    High where some patches belong together and others do not. Expected and source: as `feature_variance`.
    """
    n = similarity.shape[1]
    # A token with itself is 1 always, which would only blur the variance.
    off = ~torch.eye(n, dtype=torch.bool, device=similarity.device)
    mean = (similarity * off).sum(dim=(1, 2)) / (n * (n - 1))
    return ((similarity - mean.view(-1, 1, 1)).square() * off).sum(dim=(1, 2)) / (n * (n - 1))


def intra_inter(
    weights: Float[Tensor, "B N N"], side: Bool[Tensor, "B N"]
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Mean weight of pairs on the same side of a cut, and of pairs on different ones; their difference is the gap.

    Pairs of a patch with itself do not count; weights may be asymmetric, both directions do. NaN where there is no
    such pair. Cosines give a gap in [-2, 2]; attention scales as 1 / N and compares only at equal N.

    Args:
        weights: cosines, or attention averaged over heads.
        side: of `masks.ncut.ncut` on the same layer.

    Expected: the gap grows in training and early; it is large already for random weights, so compare with step 0.
    Source: Self-Guided MAE (Shin et al. 2024, section 3); leaving i = j out is our choice.
    """
    # S W S^T with the two sides as rows of S: the sums over all pairs of sides in two products, without an N x N mask.
    sides = torch.stack([side, ~side], dim=1).to(weights)
    sums = sides @ weights @ sides.mT
    count = sides.sum(dim=2)
    same = (count * (count - 1)).sum(dim=1)
    itself = weights.diagonal(dim1=1, dim2=2).sum(dim=1)
    # Both directions: attention of i to j is not that of j to i.
    across = 2 * count.prod(dim=1)
    # Pairs of a patch with itself are in the sums of both sides and come out again.
    intra = (sums.diagonal(dim1=1, dim2=2).sum(dim=1) - itself) / same
    return intra, (sums[:, 0, 1] + sums[:, 1, 0]) / across


def row_divergence(p: Float[Tensor, "B N N"], q: Float[Tensor, "B N N"]) -> Float[Tensor, " B"]:
    """KL(p_i || q_i) in nats, mean over rows; 0 only for equal rows.

    Layer KL over training: `p` the relations at the end, `q` those of the same pictures at an earlier step. Attention
    rows are distributions, cosines become such by a softmax of temperature 1. 1e-8 is added to each entry before.
    Expected: falls fast in early epochs. Source: Self-Guided MAE (Shin et al. 2024), which leaves the direction open.
    """
    p, q = _positive_rows(p), _positive_rows(q)
    return (p * (p.log() - q.log())).sum(dim=-1).mean(dim=-1).clamp_min(0)


def _positive_rows(rows: Tensor) -> Tensor:
    """Rows that sum to 1 and hold no 0, whose logarithm would be infinite."""
    rows = rows + 1e-8
    return rows / rows.sum(dim=-1, keepdim=True)
