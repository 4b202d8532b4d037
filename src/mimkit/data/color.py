"""Random changes of color: batches of pictures in [0, 1] and their keys enter, changed pictures leave."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import conv2d, pad

from mimkit.core.errors import UserError
from mimkit.core.randomness import uniform

_STREAM = 1  # of a view's key; its box is drawn from stream 0
_AT_ONCE = 1 << 18  # values changed in a piece on the CPU: it stays in the cache


@dataclass(frozen=True, kw_only=True)
class ColorAugment:
    """Jitter, gray, blur, solarize, each for a share of the pictures; the defaults are MoCo v2's (Chen et al. 2020).

    Every step is torchvision's for float pictures (transforms/v2), with numbers of its own for each picture.
    """

    jitter: float = 0.8
    """Share of pictures whose brightness, contrast, saturation and hue are changed, in random order."""
    brightness: float = 0.4
    """Multiplied by 1 - this to 1 + this."""
    contrast: float = 0.4
    """Distance from the mean gray, multiplied by 1 - this to 1 + this."""
    saturation: float = 0.4
    """Distance from gray, multiplied by 1 - this to 1 + this."""
    hue: float = 0.1
    """Turned by up to this share of the color circle, at most 0.5, to either side."""
    gray: float = 0.2
    """Share of pictures that lose their color."""
    blur: float = 0.5
    """Share of pictures that are blurred by a Gaussian."""
    sigma: tuple[float, float] = (0.1, 2.0)
    """Least and largest standard deviation of the blur, in pixels."""
    blur_radius: float | None = None
    """Half the blur's kernel as a share of the height (SimCLR: 0.05); by default three times the largest sigma."""
    solarize: float = 0.0
    """Share of pictures whose values from 0.5 on are inverted."""

    def __post_init__(self) -> None:
        for name in ("jitter", "gray", "blur", "solarize"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"color.{name} is a share between 0 and 1, got {getattr(self, name)}")
        for name, most in (("brightness", math.inf), ("contrast", math.inf), ("saturation", math.inf), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise UserError(f"color.{name} must lie between 0 and {most}, got {getattr(self, name)}")
        if not 0 < self.sigma[0] <= self.sigma[1] < math.inf:
            raise UserError(f"color.sigma must be 0 < least <= largest, got {self.sigma}")
        if self.blur_radius is not None and not 0 <= self.blur_radius < 1:
            raise UserError(f"color.blur_radius is a share of the height in [0, 1), got {self.blur_radius}")

    def check(self, channels: int) -> None:
        """Refuse what needs red, green and blue for pictures that have neither these nor gray alone."""
        strengths = {"saturation": self.jitter * self.saturation, "hue": self.jitter * self.hue, "gray": self.gray}
        if channels not in (1, 3) and any(strengths.values()):
            names = " and ".join(f"color.{name}" for name, value in strengths.items() if value)
            raise UserError(f"pictures of {channels} channels have no {names}: set 0")

    def __call__(self, values: Float[Tensor, "B C H W"], rng_keys: Int64[Tensor, " B"]) -> Float[Tensor, "B C H W"]:
        """Changed copies of pictures in [0, 1], on their device; keys on the CPU, so that nothing waits for it.

        Gray pictures (C = 1) have neither saturation nor hue. Raises UserError as `check` does.
        """
        self.check(values.shape[1])
        values, rng_keys = values.clone(), rng_keys.cpu()
        jitter, gray, blur, spread, solarize, *rest = uniform(rng_keys, 13, _STREAM).unbind(1)
        order = torch.stack(rest[:4], 1).argsort(1)  # ranks of four numbers: each order is equally likely
        strength = torch.stack(rest[4:], 1)
        # Every picture has its own order of the four changes. So for each of the four places all four are gone
        # through, each for the pictures that have it there: 16 small batches instead of one picture at a time.
        for place in order.unbind(1):
            for number, name in enumerate(("brightness", "contrast", "saturation", "hue")):
                most = getattr(self, name)
                if most == 0 or (number > 1 and values.shape[1] == 1):
                    continue
                low = -most if name == "hue" else max(0.0, 1 - most)
                amount = low + strength[:, number] * ((most if name == "hue" else 1 + most) - low)
                changed = (place == number) & (jitter < self.jitter)
                _replace(values, changed, _CHANGES[name], amount)
        if values.shape[1] == 3:
            _replace(values, gray < self.gray, lambda pictures: _gray(pictures).expand_as(pictures))
        height, width = values.shape[2:]
        reach = math.ceil(3 * self.sigma[1]) if self.blur_radius is None else int(self.blur_radius * height)
        reach = min(reach, height - 1, width - 1)  # a mirrored border is no wider
        sigma = self.sigma[0] + spread * (self.sigma[1] - self.sigma[0])
        # A softmax of -x^2 / 2 sigma^2 is a Gaussian that sums to 1; all kernels have one width, for one convolution.
        kernels = torch.softmax(-((torch.arange(-reach, reach + 1) / sigma.unsqueeze(1)) ** 2) / 2, 1)
        _replace(values, blur < self.blur, _blurred, kernels)
        _replace(
            values, solarize < self.solarize, lambda pictures: torch.where(pictures >= 0.5, 1 - pictures, pictures)
        )
        return values


def _replace(values: Tensor, selected: Tensor, change: Callable[..., Tensor], *numbers: Tensor) -> None:
    """Replace the chosen pictures by what `change` makes of them and of their numbers."""
    rows = selected.nonzero().flatten()
    if not len(rows):
        return
    # In pieces on the CPU: the steps of a change go over the same values several times. A GPU wants them all at once.
    size = max(1, _AT_ONCE // values[0].numel()) if values.device.type == "cpu" else len(rows)
    for piece in rows.split(size):
        own = [column[piece].to(values.device, non_blocking=True) for column in numbers]
        piece = piece.to(values.device, non_blocking=True)
        values.index_copy_(0, piece, change(values.index_select(0, piece), *own))


def _gray(values: Tensor) -> Tensor:
    """Luma as torchvision weighs it; the mean of other channels than red, green and blue."""
    if values.shape[1] != 3:
        return values.mean(1, keepdim=True)
    red, green, blue = values.split(1, 1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _away(values: Tensor, middle: Tensor | None, factor: Tensor) -> Tensor:
    """Values (changed in place) at `factor` times their distance from the middle."""
    factor = factor.view(-1, 1, 1, 1)
    values.mul_(factor)
    return (values if middle is None else values.addcmul_(middle, 1 - factor)).clamp_(0, 1)


def _turned(values: Tensor, turn: Tensor) -> Tensor:
    """Another hue at the same largest and least value, by the distance of each channel's own hue on the circle."""
    red, green, blue = values.unbind(1)
    largest, least = red.maximum(green).maximum(blue), red.minimum(green).minimum(blue)
    chroma = largest - least
    fraction = 1 / chroma.clamp(min=1e-12)
    hue = torch.where(largest == green, (blue - red).mul_(fraction).add_(2), (red - green).mul_(fraction).add_(4))
    hue = torch.where(largest == red, (green - blue).mul_(fraction), hue)  # in sixths of the circle
    # Red, green and blue lie a third of the circle apart: of each channel the distance of the hue from its own says
    # how much of the chroma it has, full up to one sixth away, none from two sixths on.
    away = (hue + 6 * turn.view(-1, 1, 1)).unsqueeze(1) + values.new_tensor([0.0, 4.0, 2.0]).view(3, 1, 1)
    away.sub_((away / 6).floor_(), alpha=6).sub_(3).abs_().sub_(1).clamp_(0, 1)  # `remainder` is slow
    return away.mul_(chroma.unsqueeze(1)).add_(least.unsqueeze(1))


def _blurred(values: Tensor, kernels: Tensor) -> Tensor:
    """Each picture under its own kernel, along rows and columns, with mirrored borders."""
    n, channels, height, width = values.shape
    reach, planes = kernels.shape[1] // 2, n * channels
    # The planes of a batch become channels of one picture, and groups give each its own kernel. A Gaussian is the
    # product of a row and a column, so two thin convolutions do.
    weights = kernels.repeat_interleave(channels, 0)
    values = pad(values.view(1, planes, height, width), (reach,) * 4, mode="reflect")
    values = conv2d(values, weights.view(planes, 1, 1, -1), groups=planes)
    return conv2d(values, weights.view(planes, 1, -1, 1), groups=planes).view(n, channels, height, width)


_CHANGES = {
    "brightness": lambda values, factor: _away(values, None, factor),
    "contrast": lambda values, factor: _away(values, _gray(values).mean((2, 3), keepdim=True), factor),
    "saturation": lambda values, factor: _away(values, _gray(values), factor),
    "hue": _turned,
}
