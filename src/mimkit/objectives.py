"""Objectives: predictions, targets and where they count enter, one number leaves. Always in float32."""

from jaxtyping import Bool, Float
from torch import Tensor


def mean_where(values: Float[Tensor, "B N"], where: Bool[Tensor, "B N"]) -> Float[Tensor, ""]:
    """Mean of `values` over the places where `where` holds, over the whole batch at once."""
    return (values * where).sum() / where.sum()


def squared_error(
    prediction: Float[Tensor, "B N P"], target: Float[Tensor, "B N P"], where: Bool[Tensor, "B N"]
) -> Float[Tensor, ""]:
    """Mean squared error of each patch, averaged over the chosen patches (He et al. 2022: the hidden ones)."""
    return mean_where((prediction.float() - target.float()).square().mean(dim=-1), where)
