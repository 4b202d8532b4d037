"""Token ids as the target: images enter, the ids that a frozen tokenizer gives them leave."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from mimkit.core.config import absolute
from mimkit.core.errors import UserError
from mimkit.methods.targets.base import PictureTarget
from mimkit.model.backbone import Backbone
from mimkit.model.frozen import Frozen
from mimkit.model.tokenizer import open_tokenizer


@dataclass(frozen=True, kw_only=True)
class TokenIds(PictureTarget):
    """The ids that a frozen tokenizer gives the picture (SimMIM's ablation; BEiT, Bao et al., arXiv:2106.08254)."""

    tokenizer: str = ""
    """A run that trained one (`tokenizer_mini_32`), or `package.module:function` of a function that returns a Module
    with `ids(images in [0, 1]) -> (B, h, w)` and `classes`, and for pictures with `pictures(ids)`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokenizer", absolute(self.tokenizer))

    def open(self, encoder: Backbone) -> "LoadedTokenIds":
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
        return LoadedTokenIds(tokenizer=self.tokenizer, network=Frozen(tokenizer), cell=cell)


@dataclass(frozen=True, kw_only=True)
class LoadedTokenIds(TokenIds):
    """`TokenIds` with its tokenizer loaded."""

    network: Frozen  # type: ignore[bad-override]
    cell: int  # type: ignore[bad-override]

    @property
    def classes(self) -> int:  # type: ignore[override]
        return int(self.network.network.classes)

    def open(self, encoder: Backbone) -> "LoadedTokenIds":
        """Itself."""
        return self

    def __call__(
        self, images: Tensor, mean: Tensor, std: Tensor, palette: Tensor | None = None
    ) -> Int64[Tensor, "B 1 h w"]:
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return self.network.network.ids((images.float() * std + mean).clamp(0, 1)).unsqueeze(1)

    def restore(
        self, prediction: Tensor, images: Tensor, mean: Tensor, std: Tensor, palette: Tensor | None = None
    ) -> Float[Tensor, "B C H W"] | None:
        """What the tokenizer makes of the likeliest ids, where it makes pictures."""
        if not hasattr(self.network.network, "pictures"):
            return None
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            pictures = self.network.network.pictures(prediction.argmax(dim=1))
        if pictures.shape[2:] != images.shape[2:]:
            pictures = F.interpolate(pictures, images.shape[2:], mode="bilinear", antialias=True)
        return (pictures - mean) / std
