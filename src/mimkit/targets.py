"""Targets: what a method predicts. Patches or pictures enter, the numbers or classes to predict for them leave."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mimkit import distributed
from mimkit.config import absolute
from mimkit.errors import UserError, at_least
from mimkit.model.encoder import Backbone
from mimkit.model.tokenizer import open_tokenizer
from mimkit.randomness import integer, keys
from mimkit.task import Gallery

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
    """Base of what SimMIM predicts for each square of `cell` x `cell` pixels.

    Images come normalised; `mean` and `std` (C, 1, 1) are what was subtracted from pixels in [0, 1], and divided by;
    `palette` is what `fit` found, of a target that takes something from the data.
    """

    cell = 1
    classes = 0
    """0 for numbers to be near to, else how many classes to choose from."""

    def open(self, encoder: Backbone) -> "PictureTarget":
        """The target that an encoder's method works with: itself, or with what it names loaded."""
        return self

    def outputs(self, channels: int) -> int:
        """How many numbers are predicted for each square of images with `channels`."""
        return self.classes or channels

    def blank(self, channels: int) -> Tensor | None:
        """A palette of the shape that `fit` finds; None of a target that takes nothing from the data."""
        return None

    def fit(self, images: Float[Tensor, "B C H W"]) -> Tensor:
        """The palette of pictures in [0, 1]."""
        raise NotImplementedError(f"{type(self).__name__} takes nothing from the data until it defines fit")

    def __call__(
        self,
        images: Float[Tensor, "B C H W"],
        mean: Float[Tensor, "C 1 1"],
        std: Float[Tensor, "C 1 1"],
        palette: Tensor | None = None,
    ) -> Float[Tensor, "B C h w"] | Int64[Tensor, "B L h w"]:
        """Numbers, or `L` labels, for each square."""
        raise NotImplementedError(f"{type(self).__name__} is no target until it defines __call__")

    def restore(
        self,
        prediction: Float[Tensor, "B O h w"],
        images: Float[Tensor, "B C H W"],
        mean: Float[Tensor, "C 1 1"],
        std: Float[Tensor, "C 1 1"],
        palette: Tensor | None = None,
    ) -> Float[Tensor, "B C H W"] | None:
        """Predictions as normalised pictures; None where they cannot be drawn."""
        raise NotImplementedError(f"{type(self).__name__} is no target until it defines restore")


@dataclass(frozen=True, kw_only=True)
class ColourTarget(PictureTarget):
    """Base of targets that are colours."""

    cell: int = 1  # type: ignore[bad-override]
    """Side of the squares in pixels whose mean colour is the target: 4 of 192 px is SimMIM's resolution 48."""

    def __post_init__(self) -> None:
        at_least(1, **{"target.cell": self.cell})

    def shrink(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        """The mean of each square."""
        return F.avg_pool2d(images.float(), self.cell) if self.cell > 1 else images.float()

    def enlarge(self, squares: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C H W"]:
        """Each square in full size."""
        return squares.float().repeat_interleave(self.cell, dim=2).repeat_interleave(self.cell, dim=3)


@dataclass(frozen=True, kw_only=True)
class Colours(ColourTarget):
    """Normalised pixels (Xie et al. 2022, section 3.5), for SwinV2 each standardised by what surrounds it."""

    window: int | None = None
    """Side in pixels of the window whose mean and variance standardise each pixel; SimMIM on SwinV2 has 47."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None and (self.window < 3 or self.window % 2 == 0):
            raise UserError(f"target.window is an odd number of pixels from 3 on, got {self.window}")

    def __call__(
        self, images: Tensor, mean: Tensor, std: Tensor, palette: Tensor | None = None
    ) -> Float[Tensor, "B C h w"]:
        if self.window is None:
            return self.shrink(images)
        centre, scale = surroundings(images, self.window)
        return self.shrink((images.float() - centre) / scale)

    def restore(
        self, prediction: Tensor, images: Tensor, mean: Tensor, std: Tensor, palette: Tensor | None = None
    ) -> Float[Tensor, "B C H W"]:
        """With a `window` each pixel borrows mean and variance of the true picture."""
        if self.window is None:
            return self.enlarge(prediction)
        centre, scale = surroundings(images, self.window)
        return self.enlarge(prediction) * scale + centre


@dataclass(frozen=True, kw_only=True)
class ColourBins(ColourTarget):
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
class ColourClusters(ColourTarget):
    """The nearest of `clusters` colours that k-means finds in the data (SimMIM's ablation; iGPT, Chen et al. 2020).

    Distances are squared ones in RGB, or whatever the channels are, of pixels in [0, 1] (openai/image-gpt:src/utils.py
    has them in [-1, 1], where the same colour is nearest).
    """

    clusters: int = 512
    """How many colours; iGPT's 9-bit palette."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(2, **{"target.clusters": self.clusters})

    @property
    def classes(self) -> int:  # type: ignore[override]
        return self.clusters

    def blank(self, channels: int) -> Float[Tensor, "K C"]:
        return torch.zeros(self.clusters, channels)

    def fit(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "K C"]:
        """The centres of k-means over at most 65,536 squares of these pictures, always the same ones.

        Raises:
            UserError: there are fewer colours than clusters.
        """
        colours = self.shrink(images.cpu()).movedim(1, 3).flatten(0, 2)
        colours = colours[keys("palette", torch.arange(len(colours))).argsort()[:65_536]]
        distinct = len((255 * colours).round().unique(dim=0))
        if distinct < self.clusters:
            raise UserError(
                f"{self.clusters} clusters of {distinct} colours in these pictures: lower --method.target.clusters"
            )
        from sklearn.cluster import MiniBatchKMeans  # takes a second, which other targets need not pay

        means = MiniBatchKMeans(
            self.clusters, batch_size=4096, n_init=1, random_state=integer("palette", self.clusters) % 2**32
        ).fit(colours.numpy())
        return torch.from_numpy(means.cluster_centers_).float()

    def __call__(
        self, images: Tensor, mean: Tensor, std: Tensor, palette: Tensor | None = None
    ) -> Int64[Tensor, "B 1 h w"]:
        assert palette is not None
        with torch.autocast(images.device.type, enabled=False):
            colours = (self.shrink(images) * std + mean).movedim(1, 3)
            return (palette.square().sum(dim=1) / 2 - colours @ palette.T).argmin(dim=3).unsqueeze(1)

    def restore(
        self, prediction: Tensor, images: Tensor, mean: Tensor, std: Tensor, palette: Tensor | None = None
    ) -> Float[Tensor, "B C H W"]:
        """The likeliest colour."""
        assert palette is not None
        return self.enlarge((palette[prediction.argmax(dim=1)].movedim(3, 1) - mean) / std)


@dataclass(frozen=True, kw_only=True)
class Tokens(PictureTarget):
    """The ids that a frozen tokenizer gives the picture (SimMIM's ablation; BEiT, Bao et al., arXiv:2106.08254)."""

    tokenizer: str = ""
    """A run that trained one (`tokenizer_mini_32`), or `package.module:function` of a function that returns a Module
    with `ids(images in [0, 1]) -> (B, h, w)` and `classes`, and for pictures with `pictures(ids)`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokenizer", absolute(self.tokenizer))

    def open(self, encoder: Backbone) -> "OpenTokens":
        """With the tokenizer, and the side of what an id stands for.

        Raises:
            UserError: there is no such tokenizer, or its ids lie in no grid of squares on the encoder's images.
        """
        tokenizer, size = open_tokenizer(self.tokenizer), encoder.size
        try:
            with torch.no_grad():
                ids = tokenizer.ids(torch.full((1, encoder.channels, *size), 0.5))
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"tokenizer '{self.tokenizer}' fails on images of {encoder.channels} x {size[0]} x {size[1]} "
                f"({reason}): give one for such images"
            ) from error
        if ids.ndim != 3 or ids.dtype != torch.int64:
            raise UserError(
                f"tokenizer '{self.tokenizer}' gives {tuple(ids.shape)} {ids.dtype}: int64 (B, h, w) is asked"
            )
        grid = ids.shape[1:]
        cell = size[0] // grid[0]
        if (cell * grid[0], cell * grid[1]) != size:
            raise UserError(
                f"tokenizer '{self.tokenizer}' gives {grid[0]}x{grid[1]} ids, which are no squares on images of "
                f"{size[0]}x{size[1]}: change --images.size or take another tokenizer"
            )
        return OpenTokens(tokenizer=self.tokenizer, network=tokenizer, cell=cell)


@dataclass(frozen=True, kw_only=True)
class OpenTokens(Tokens):
    """`Tokens` with its tokenizer loaded."""

    network: Any
    """The module."""
    cell: int  # type: ignore[bad-override]

    @property
    def classes(self) -> int:  # type: ignore[override]
        return int(self.network.classes)

    def open(self, encoder: Backbone) -> "OpenTokens":
        """Itself."""
        return self

    def __call__(
        self, images: Tensor, mean: Tensor, std: Tensor, palette: Tensor | None = None
    ) -> Int64[Tensor, "B 1 h w"]:
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return self.network.ids((images.float() * std + mean).clamp(0, 1)).unsqueeze(1)

    def restore(
        self, prediction: Tensor, images: Tensor, mean: Tensor, std: Tensor, palette: Tensor | None = None
    ) -> Float[Tensor, "B C H W"] | None:
        """What the tokenizer makes of the likeliest ids, where it makes pictures."""
        if not hasattr(self.network, "pictures"):
            return None
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            pictures = self.network.pictures(prediction.argmax(dim=1))
        if pictures.shape[2:] != images.shape[2:]:
            pictures = F.interpolate(pictures, images.shape[2:], mode="bilinear", antialias=True)
        return (pictures - mean) / std


class Targets(nn.Module):
    """A target with what it needs: normalised images enter, what to predict for them leaves.

    The palette is a buffer, so it survives a resume; a tokenizer goes along to the device, but into no checkpoint.
    """

    mean: Float[Tensor, "C 1 1"]
    std: Float[Tensor, "C 1 1"]

    def __init__(self, target: PictureTarget, encoder: Backbone) -> None:
        super().__init__()
        self.target, self.cell = target, target.cell
        for name, values in (("mean", encoder.mean), ("std", encoder.std)):
            known = torch.tensor(values or [float(name == "std")] * encoder.channels)
            self.register_buffer(name, known.view(-1, 1, 1), persistent=False)
        self.palette: Tensor | None
        self.register_buffer("palette", target.blank(encoder.channels))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Targets":
        if isinstance(self.target, OpenTokens):
            self.target.network._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"] | Int64[Tensor, "B L h w"]:
        """Numbers or labels for each square."""
        return self.target(images, self.mean, self.std, self.palette)

    def restore(
        self, prediction: Float[Tensor, "B O h w"], images: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B C H W"] | None:
        """Predictions as normalised pictures; None where they cannot be drawn."""
        return self.target.restore(prediction, images, self.mean, self.std, self.palette)

    def study(self, gallery: Gallery, begun: bool) -> None:
        """Take the palette from the pictures, unless a checkpoint brings it; every process has the main one's."""
        if self.palette is None or begun:
            return
        images = gallery.some()
        pixels = (images.float() * self.std.to(images) + self.mean.to(images)).clamp(0, 1)
        self.palette.copy_(distributed.on_main(lambda: self.target.fit(pixels), images.device))


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
