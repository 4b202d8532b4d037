"""Objectives: predictions, targets and where they count enter, one number leaves. Always in float32."""

from jaxtyping import Bool, Float
from torch import Tensor


def mean_where(
    values: Float[Tensor, "B N"], where: Bool[Tensor, "B N"], per_picture: bool = False
) -> Float[Tensor, ""]:
    """Mean of `values` over the places where `where` holds, over the whole batch at once.

    With `per_picture` the mean of the pictures' means: where they count unequally many places, each weighs alike.
    """
    if per_picture:
        return ((values * where).sum(dim=1) / where.sum(dim=1).clamp(min=1)).mean()
    return (values * where).sum() / where.sum()


def squared_error(
    prediction: Float[Tensor, "B N P"],
    target: Float[Tensor, "B N P"],
    where: Bool[Tensor, "B N"],
    per_picture: bool = False,
) -> Float[Tensor, ""]:
    """Mean squared error of each patch, averaged over the chosen patches (He et al. 2022: the hidden ones)."""
    return mean_where((prediction.float() - target.float()).square().mean(dim=-1), where, per_picture)
