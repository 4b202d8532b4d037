"""How images of any number of channels are shown: normalized ones enter, colors in [0, 1] leave; holes are hatched."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mimkit.core.grids import colorize

STRETCH = (0.02, 0.98)  # quantiles of the shown values that become black and white
_SAMPLE = 1 << 20  # values that quantiles are taken from
_STRIPES = (0.45, 0.75)  # grays of hatched pixels
_STRIPE = 1 / 32  # width of a stripe as a share of the shorter side; at least two pixels


@dataclass(frozen=True, kw_only=True)
class Display:
    """Which channels of normalized images people see, and how bright."""

    mean: Sequence[float]
    """Per channel, of pixels in 0..1; with `std`."""
    std: Sequence[float]
    shown: tuple[int, ...] | None = None
    """Channels counted from 1: one is gray, two are magenta and green, three red, green and blue. None: all of up to
    three channels, of more the first three."""
    stretch: bool = False
    """Whether the shown channels are stretched, each between the 2 % and 98 % quantile of pictures (`fitted`)."""
    color_map: bool = False
    """Whether a single channel goes from dark violet to yellow instead of black to white."""
    bounds: tuple[tuple[float, float], ...] | None = None
    """Black and white of each shown channel in 0..1; None: 0 and 1."""

    @property
    def channels(self) -> tuple[int, ...]:
        """The shown ones, counted from 0."""
        if self.shown is None:
            return tuple(range(min(3, len(self.mean))))
        return tuple(channel - 1 for channel in self.shown)

    def fitted(self, images: Float[Tensor, "B C H W"], valid: Bool[Tensor, "B C H W"] | None = None) -> "Display":
        """The same with the bounds of these pictures, where it stretches; what has no data counts not."""
        if not self.stretch:
            return self
        values, bounds = self._pixels(images), []
        where = torch.ones_like(values, dtype=torch.bool) if valid is None else valid.cpu()[:, list(self.channels)]
        for channel in range(values.shape[1]):
            measured = values[:, channel][where[:, channel]]
            measured = measured[:: len(measured) // _SAMPLE + 1]
            low, high = measured.quantile(torch.tensor(STRETCH)).tolist() if len(measured) else (0.0, 1.0)
            bounds.append((low, high) if low < high else (0.0, 1.0))
        return replace(self, bounds=tuple(bounds))

    def only(self, channel: int) -> "Display":
        """One channel, counted from 1, alone."""
        return replace(self, shown=(channel,), bounds=None)

    def __call__(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 H W"]:
        """Colors on the CPU."""
        values = self._pixels(images)
        if self.bounds is not None:
            low, high = torch.tensor(self.bounds, dtype=values.dtype).T.view(2, -1, 1, 1)
            values = (values - low) / (high - low)
        values = values.clamp(0, 1)
        if values.shape[1] == 1:
            return colorize(values, (0, 1)) if self.color_map else values.expand(-1, 3, -1, -1)
        return values[:, [0, 1, 0]] if values.shape[1] == 2 else values

    def holes(self, valid: Bool[Tensor, "B C H W"] | None) -> Bool[Tensor, "B 1 H W"] | None:
        """Pixels of which a shown channel has no data; None where all have."""
        if valid is None:
            return None
        return ~valid.cpu()[:, list(self.channels)].all(dim=1, keepdim=True)

    def _pixels(self, images: Tensor) -> Float[Tensor, "B S H W"]:
        """The shown channels on the CPU, 0..1 where they were so before normalization."""
        rows = list(self.channels)
        values = images.detach()[:, rows].float().cpu()
        mean, std = (
            torch.tensor([numbers[row] for row in rows]).view(1, -1, 1, 1) for numbers in (self.mean, self.std)
        )
        return values * std + mean


def hatched(images: Float[Tensor, "B 3 H W"], holes: Bool[Tensor, "B 1 H W"] | None) -> Float[Tensor, "B 3 H W"]:
    """Images with diagonal gray stripes where there are holes, which nobody takes for content."""
    if holes is None:
        return images
    height, width = images.shape[2:]
    stripe = max(2, int(min(height, width) * _STRIPE))
    place = torch.arange(height).unsqueeze(1) + torch.arange(width)
    stripes = torch.tensor(_STRIPES)[(place // stripe) % 2]
    return torch.where(holes, stripes, images)


def split_holes(
    images: Float[Tensor, "B C H W"],
) -> tuple[Float[Tensor, "B C H W"], Bool[Tensor, "B C H W"] | None]:
    """Images with 0 where they were NaN, and which values were not; None where all are measured."""
    valid = ~images.isnan()
    return (images, None) if valid.all() else (images.nan_to_num(0.0), valid)
