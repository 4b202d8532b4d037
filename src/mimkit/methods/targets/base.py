"""Picture targets: normalized images enter, the numbers or classes to predict for each square leave."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mimkit.core import distributed
from mimkit.core.batch import DatasetView
from mimkit.model.backbone import Backbone
from mimkit.model.frozen import Frozen


@dataclass(frozen=True, kw_only=True)
class PictureTarget:
    """Base of what SimMIM predicts for each square of `cell` x `cell` pixels.

    Images come normalized; `mean` and `std` (C, 1, 1) are what was subtracted from pixels in [0, 1], and divided by;
    `palette` is what `fit` found, of a target that takes something from the data.
    """

    cell = 1
    classes = 0
    """0 for numbers to be near to, else how many classes to choose from."""
    network: ClassVar[Frozen | None] = None
    """What the target asks, as a tokenizer, once `open` has loaded it."""

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
    ) -> Float[Tensor, "B O h w"] | Int64[Tensor, "B L h w"]:
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
        """Predictions as normalized pictures; None where they cannot be drawn."""
        raise NotImplementedError(f"{type(self).__name__} is no target until it defines restore")


class Targets(nn.Module):
    """A target with what it needs: normalized images enter, what to predict for them leaves.

    The palette is a buffer, so it survives a resume; a tokenizer goes along to the device, but into no checkpoint.
    """

    mean: Float[Tensor, "C 1 1"]
    std: Float[Tensor, "C 1 1"]

    def __init__(self, target: PictureTarget, encoder: Backbone) -> None:
        super().__init__()
        self.target, self.cell = target, target.cell
        self.network = target.network  # registered, so that it goes along to the device
        for name, values in (("mean", encoder.mean), ("std", encoder.std)):
            known = torch.tensor(values or [float(name == "std")] * encoder.channels)
            self.register_buffer(name, known.view(-1, 1, 1), persistent=False)
        self.palette: Tensor | None
        self.register_buffer("palette", target.blank(encoder.channels))

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B O h w"] | Int64[Tensor, "B L h w"]:
        """Numbers or labels for each square."""
        return self.target(images, self.mean, self.std, self.palette)

    def restore(
        self, prediction: Float[Tensor, "B O h w"], images: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B C H W"] | None:
        """Predictions as normalized pictures; None where they cannot be drawn."""
        return self.target.restore(prediction, images, self.mean, self.std, self.palette)

    def setup(self, dataset: DatasetView, resumed: bool) -> None:
        """Take the palette from the pictures, unless a checkpoint brings it; every process has the main one's."""
        if self.palette is None or resumed:
            return
        images = dataset.sample()
        pixels = (images.float() * self.std.to(images) + self.mean.to(images)).clamp(0, 1)
        self.palette.copy_(distributed.on_main(lambda: self.target.fit(pixels), images.device))
