"""Reconstruction: predictions of the same pictures under several masks enter, error and disagreement leave."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def reconstruction_error(
    prediction: Float[Tensor, "B K N P"], target: Float[Tensor, "B N P"], hidden: Bool[Tensor, "B K N"]
) -> Float[Tensor, " B"]:
    """Mean squared error on hidden patches over all masks, in units of the target's variance in the picture.

    1 is what predicting the picture's mean costs, 0 perfect. NaN for a picture of one color. It is of pixels: a model
    may know what is there and not draw it.
    """
    error = (prediction - target.unsqueeze(1)).square().mean(dim=3)
    return (error * hidden).sum(dim=(1, 2)) / hidden.sum(dim=(1, 2)) / _variance(target)


def disagreement(
    prediction: Float[Tensor, "B K N P"], target: Float[Tensor, "B N P"], hidden: Bool[Tensor, "B K N"]
) -> Float[Tensor, " B"]:
    """How much predictions of one patch differ between masks, in units of the target's variance in the picture.

    Mean over pairs of masks that both hide the patch of |y_a - y_b|^2 / P, then over patches that at least two hide: as
    twice the unbiased variance, in time proportional to K. 0 only where all agree, which a constant does perfectly:
    read it beside `reconstruction_error`. Source: EMAE (Li et al. 2023, arXiv:2302.14431).
    """
    where = hidden.unsqueeze(3)
    count = hidden.sum(dim=1)
    mean = (prediction * where).sum(dim=1) / count.clamp_min(1).unsqueeze(2)
    # Squares about the mean: the sum over all pairs is twice these by a count, and K predictions need K terms.
    squares = ((prediction - mean.unsqueeze(1)).square() * where).sum(dim=1).mean(dim=2)
    several = count > 1
    pairs = 2 * squares / (count - 1).clamp_min(1)
    return (pairs * several).sum(dim=1) / several.sum(dim=1) / _variance(target)


def _variance(target: Float[Tensor, "B N P"]) -> Float[Tensor, " B"]:
    variance = target.flatten(1).var(dim=1, correction=0)
    return torch.where(variance > 1e-6, variance, torch.nan)
