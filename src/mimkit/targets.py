"""Targets: what a method predicts. Patches or pictures enter, the numbers or classes to predict for them leave."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from mimkit.errors import UserError, at_least

EPSILON = 1e-6  # added to the variance, as in facebookresearch/mae:models_mae.py


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """The pixels of a patch, by default each patch standardised by its own mean and variance (`norm_pix_loss`).

    He et al. 2022, section 3. Mean and variance run over all numbers of a patch, colours together; the variance is
    the unbiased one (divided by P - 1), which is what the released code computes.
    """

    norm: bool = True
    """Standardise each patch; off predicts plain normalised pixels."""

    def __call__(self, patches: Float[Tensor, "B N P"]) -> Float[Tensor, "B N P"]:
        patches = patches.float()
        if not self.norm:
            return patches
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return (patches - mean) / (variance + EPSILON).sqrt()

    def restore(self, prediction: Float[Tensor, "B N P"], patches: Float[Tensor, "B N P"]) -> Float[Tensor, "B N P"]:
        """Predictions as normalised pixels, for pictures; with `norm` each patch borrows the true one's statistics."""
        if not self.norm:
            return prediction.float()
        variance, mean = torch.var_mean(patches.float(), dim=-1, keepdim=True)
        return prediction.float() * (variance + EPSILON).sqrt() + mean


@dataclass(frozen=True, kw_only=True)
class PictureTarget:
    """Base of what SimMIM predicts for each pixel, or each square of `cell` x `cell` pixels.

    Images come normalised; `mean` and `std` (C, 1, 1) are what was subtracted from pixels in [0, 1], and divided by.
    """

    cell: int = 1
    """Side of the squares in pixels whose mean colour is the target: 4 of 192 px is SimMIM's resolution 48."""

    classes = 0
    """0 for numbers to be near to, else how many classes to choose from."""

    def __post_init__(self) -> None:
        at_least(1, **{"target.cell": self.cell})

    def outputs(self, channels: int) -> int:
        """How many numbers are predicted for each square of images with `channels`."""
        return channels

    def __call__(
        self, images: Float[Tensor, "B C H W"], mean: Float[Tensor, "C 1 1"], std: Float[Tensor, "C 1 1"]
    ) -> Float[Tensor, "B C h w"] | Int64[Tensor, "B L h w"]:
        """Numbers, or `L` labels, for each square."""
        raise NotImplementedError(f"{type(self).__name__} is no target until it defines __call__")

    def restore(
        self,
        prediction: Float[Tensor, "B O h w"],
        images: Float[Tensor, "B C H W"],
        mean: Float[Tensor, "C 1 1"],
        std: Float[Tensor, "C 1 1"],
    ) -> Float[Tensor, "B C H W"]:
        """Predictions as normalised pictures."""
        raise NotImplementedError(f"{type(self).__name__} is no target until it defines restore")

    def shrink(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        """The mean of each square."""
        return F.avg_pool2d(images.float(), self.cell) if self.cell > 1 else images.float()

    def enlarge(self, squares: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C H W"]:
        """Each square in full size."""
        return squares.float().repeat_interleave(self.cell, dim=2).repeat_interleave(self.cell, dim=3)


@dataclass(frozen=True, kw_only=True)
class Colours(PictureTarget):
    """Normalised pixels (Xie et al. 2022, section 3.5), for SwinV2 each standardised by what surrounds it."""

    window: int | None = None
    """Side in pixels of the window whose mean and variance standardise each pixel; SimMIM on SwinV2 has 47."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None and (self.window < 3 or self.window % 2 == 0):
            raise UserError(f"target.window is an odd number of pixels from 3 on, got {self.window}")

    def __call__(self, images: Tensor, mean: Tensor, std: Tensor) -> Float[Tensor, "B C h w"]:
        if self.window is None:
            return self.shrink(images)
        centre, scale = surroundings(images, self.window)
        return self.shrink((images.float() - centre) / scale)

    def restore(self, prediction: Tensor, images: Tensor, mean: Tensor, std: Tensor) -> Float[Tensor, "B C H W"]:
        """With a `window` each pixel borrows mean and variance of the true picture."""
        if self.window is None:
            return self.enlarge(prediction)
        centre, scale = surroundings(images, self.window)
        return self.enlarge(prediction) * scale + centre


@dataclass(frozen=True, kw_only=True)
class ColourBins(PictureTarget):
    """Each channel of a pixel as one of `bins` equal ranges of its 0..255 (SimMIM's ablation, table 5)."""

    bins: int = 8
    """How many ranges; 8 and 256 in the paper."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.bins <= 256:
            raise UserError(f"target.bins is a number of ranges from 2 to 256, got {self.bins}")

    @property
    def classes(self) -> int:  # type: ignore[override]
        return self.bins

    def outputs(self, channels: int) -> int:
        return channels * self.bins

    def __call__(self, images: Tensor, mean: Tensor, std: Tensor) -> Int64[Tensor, "B C h w"]:
        levels = (255 * (self.shrink(images) * std + mean)).round().clamp(0, 255)
        return (levels * self.bins / 256).floor().long()

    def restore(self, prediction: Tensor, images: Tensor, mean: Tensor, std: Tensor) -> Float[Tensor, "B C H W"]:
        """The middle of the likeliest range."""
        chosen = prediction.unflatten(1, (-1, self.bins)).argmax(dim=2)
        return self.enlarge((((chosen + 0.5) * 256 / self.bins - 0.5) / 255 - mean) / std)


def surroundings(
    images: Float[Tensor, "B C H W"], window: int
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B C H W"]]:
    """Mean and standard deviation of each channel in the window around each pixel, as far as it lies in the picture.

    The variance is the unbiased one, at least 0, and 1e-6 is added to it, as in
    `microsoft/Swin-Transformer:models/simmim.py`. A box is averaged along one axis after the other; the picture's mean
    is taken off before, for precision.
    """

    def average(x: Tensor) -> Tensor:
        for sides in ((window, 1), (1, window)):
            x = F.avg_pool2d(x, sides, 1, (sides[0] // 2, sides[1] // 2), count_include_pad=False)
        return x

    with torch.autocast(images.device.type, enabled=False):
        whole = images.float().mean(dim=(2, 3), keepdim=True)
        x = images.float() - whole
        rows, columns = (
            torch.arange(side, device=x.device).add(window // 2).clamp(max=side - 1)
            - torch.arange(side, device=x.device).sub(window // 2).clamp(min=0)
            + 1
            for side in x.shape[2:]
        )
        count = rows.unsqueeze(1) * columns
        mean = average(x)
        variance = (average(x.square()) - mean.square()) * (count / (count - 1))
        return mean + whole, (variance.clamp(min=0) + EPSILON).sqrt()
