"""Losses of single channels: errors of pixels and where they count enter, a number to log for each channel leaves."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

FROM, MOST = 4, 64  # channels from which on each is logged, and up to which


def logged(channels: int) -> bool:
    """Whether images of so many channels have losses of their own for each: up to three are a color."""
    return FROM <= channels <= MOST


@torch.no_grad()
def channel_losses(
    errors: Float[Tensor, "R T C"],
    where: Bool[Tensor, "R T"] | Float[Tensor, "R T"],
    valid: Bool[Tensor, "R T C"] | None = None,
) -> dict[str, Tensor]:
    """The mean error of each channel over the places that count and have data, as `loss_channel_1` and so on."""
    weights = where.unsqueeze(2).float().expand(errors.shape)
    weights = weights if valid is None else weights * valid
    means = (errors.float() * weights).sum(dim=(0, 1)) / weights.sum(dim=(0, 1)).clamp(min=1e-6)
    return {f"loss_channel_{channel}": mean for channel, mean in enumerate(means.unbind(), start=1)}
