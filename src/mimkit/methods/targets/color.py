"""Colors as the target: images enter, the color of each square as numbers or as a class leaves."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from mimkit.core.errors import UserError, at_least
from mimkit.core.randomness import integer, rng_keys
from mimkit.methods.targets.base import PictureTarget
from mimkit.methods.targets.pixels import EPSILON


@dataclass(frozen=True, kw_only=True)
class ColorTarget(PictureTarget):
    """Base of targets that are colors."""

    cell: int = 1  # type: ignore[bad-override]
    """Side of the squares in pixels whose mean color is the target: 4 of 192 px is SimMIM's resolution 48."""

    def __post_init__(self) -> None:
        at_least(1, **{"target.cell": self.cell})

    def shrink(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        """The mean of each square."""
        return F.avg_pool2d(images.float(), self.cell) if self.cell > 1 else images.float()

    def enlarge(self, squares: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C H W"]:
        """Each square in full size."""
        return squares.float().repeat_interleave(self.cell, dim=2).repeat_interleave(self.cell, dim=3)


@dataclass(frozen=True, kw_only=True)
class RawPixels(ColorTarget):
    """Normalized pixels (Xie et al. 2022, section 3.5), for SwinV2 each standardized by what surrounds it."""

    window: int | None = None
    """Side in pixels of the window whose mean and variance standardize each pixel; SimMIM on SwinV2 has 47."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None and (self.window < 3 or self.window % 2 == 0):
            raise UserError(f"target.window is an odd number of pixels from 3 on, got {self.window}")

    def __call__(
        self, images: Tensor, mean: Tensor, std: Tensor, palette: Tensor | None = None
    ) -> Float[Tensor, "B C h w"]:
        if self.window is None:
            return self.shrink(images)
        center, scale = surroundings(images, self.window)
        return self.shrink((images.float() - center) / scale)

    def restore(
        self, prediction: Tensor, images: Tensor, mean: Tensor, std: Tensor, palette: Tensor | None = None
    ) -> Float[Tensor, "B C H W"]:
        """With a `window` each pixel borrows mean and variance of the true picture."""
        if self.window is None:
            return self.enlarge(prediction)
        center, scale = surroundings(images, self.window)
        return self.enlarge(prediction) * scale + center


@dataclass(frozen=True, kw_only=True)
class ColorBins(ColorTarget):
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

    def __call__(
        self, images: Tensor, mean: Tensor, std: Tensor, palette: Tensor | None = None
    ) -> Int64[Tensor, "B C h w"]:
        levels = (255 * (self.shrink(images) * std + mean)).round().clamp(0, 255)
        return (levels * self.bins / 256).floor().long()

    def restore(
        self, prediction: Tensor, images: Tensor, mean: Tensor, std: Tensor, palette: Tensor | None = None
    ) -> Float[Tensor, "B C H W"]:
        """The middle of the likeliest range."""
        chosen = prediction.unflatten(1, (-1, self.bins)).argmax(dim=2)
        return self.enlarge((((chosen + 0.5) * 256 / self.bins - 0.5) / 255 - mean) / std)


@dataclass(frozen=True, kw_only=True)
class ColorClusters(ColorTarget):
    """The nearest of `clusters` colors that k-means finds in the data (SimMIM's ablation; iGPT, Chen et al. 2020).

    Distances are squared ones in RGB, or whatever the channels are, of pixels in [0, 1] (openai/image-gpt:src/utils.py
    has them in [-1, 1], where the same color is nearest).
    """

    clusters: int = 512
    """How many colors; iGPT's 9-bit palette."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(2, **{"target.clusters": self.clusters})

    @property
    def classes(self) -> int:  # type: ignore[override]
        return self.clusters

    def blank(self, channels: int) -> Float[Tensor, "K C"]:
        return torch.zeros(self.clusters, channels)

    def fit(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "K C"]:
        """The centers of k-means over at most 65,536 squares of these pictures, always the same ones.

        Raises:
            UserError: there are fewer colors than clusters.
        """
        colors = self.shrink(images.cpu()).movedim(1, 3).flatten(0, 2)
        colors = colors[rng_keys("palette", torch.arange(len(colors))).argsort()[:65_536]]
        distinct = len((255 * colors).round().unique(dim=0))
        if distinct < self.clusters:
            raise UserError(
                f"{self.clusters} clusters of {distinct} colors in these pictures: lower --method.target.clusters"
            )
        from sklearn.cluster import MiniBatchKMeans  # takes a second, which other targets need not pay

        means = MiniBatchKMeans(
            self.clusters, batch_size=4096, n_init=1, random_state=integer("palette", self.clusters) % 2**32
        ).fit(colors.numpy())
        return torch.from_numpy(means.cluster_centers_).float()

    def __call__(
        self, images: Tensor, mean: Tensor, std: Tensor, palette: Tensor | None = None
    ) -> Int64[Tensor, "B 1 h w"]:
        assert palette is not None
        with torch.autocast(images.device.type, enabled=False):
            colors = (self.shrink(images) * std + mean).movedim(1, 3)
            return (palette.square().sum(dim=1) / 2 - colors @ palette.T).argmin(dim=3).unsqueeze(1)

    def restore(
        self, prediction: Tensor, images: Tensor, mean: Tensor, std: Tensor, palette: Tensor | None = None
    ) -> Float[Tensor, "B C H W"]:
        """The likeliest color."""
        assert palette is not None
        return self.enlarge((palette[prediction.argmax(dim=1)].movedim(3, 1) - mean) / std)


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
