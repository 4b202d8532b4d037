"""Normalization: views in 0..255 and mean and std of their set enter, what models see leaves on the device."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

_AT_ONCE = 1 << 18  # values normalized in a piece on the CPU


class Normalize:
    """Views in 0..255, uint8 or float32, to (x / 255 - mean) / std in float32 on the device; in `out` if given."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        # One product and one sum a value, with 255, mean and std folded into two numbers a channel.
        spread = torch.tensor(std, dtype=torch.float32, device=device).view(-1, 1, 1)
        self._device, self._scale = device, 1 / (255 * spread)
        self._shift = -torch.tensor(mean, dtype=torch.float32, device=device).view(-1, 1, 1) / spread

    def __call__(self, views: Tensor, out: Tensor | None = None) -> Float[Tensor, "B C h w"]:
        views = views.to(self._device, non_blocking=True)
        if self._device.type != "cpu":
            return torch.addcmul(self._shift, views.float(), self._scale, out=out)
        out = torch.empty(views.shape) if out is None else out
        # Two passes over values that are still in the cache cost no more than one over those that are not.
        rows = max(1, _AT_ONCE // views[0].numel()) if len(views) else 1
        for values, into in zip(views.split(rows), out.split(rows), strict=True):  # a piece stays in the cache
            values = into.copy_(values) if values.dtype == torch.uint8 else values  # mixed types are slow
            torch.mul(values, self._scale, out=into).add_(self._shift)
        return out
