"""What every encoder has: images and a Mask enter, Tokens leave."""

from typing import Any, NamedTuple

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


class Tokens(NamedTuple):
    """A sequence in two parts, so that no index of a patch ever counts class or register tokens."""

    prefix: Float[Tensor, "B P D"]
    patches: Float[Tensor, "B V D"]


class Backbone(nn.Module):
    """What every encoder has, whether it can leave patches out or not."""

    timm: Any
    """The timm model that a person leaves with."""
    patch: tuple[int, int]
    """Height and width of a patch in pixels."""
    grid: tuple[int, int]
    """Rows and columns of the patches that are embedded, which masks hide."""
    out_grid: tuple[int, int]
    """Rows and columns of the tokens that leave."""
    channels: int
    """Of the images."""
    embed_width: int
    """Of embedded patches."""
    width: int
    """Of the tokens that leave."""
    mean: tuple[float, ...] | None = None
    """How the images were normalized, per channel, of pixels in [0, 1]; with `std`."""
    std: tuple[float, ...] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.grid[0] * self.patch[0], self.grid[1] * self.patch[1]

    def embed_patches(self, patches: Float[Tensor, "B V P"]) -> Float[Tensor, "B V D"]:
        """Patches of `patchify` through timm's patch embedding, before positions."""
        embedding = self.timm.patch_embed
        weight = embedding.proj.weight.permute(0, 2, 3, 1).flatten(1)  # (row, column, channel), as patchify has it
        return embedding.norm(F.linear(patches, weight, embedding.proj.bias))

    def fill(self, patches: Float[Tensor, "B N P"], hidden: Bool[Tensor, "B N"], token: Float[Tensor, " D"]) -> Tokens:
        """The full sequence: all patches embedded, `token` in place of hidden ones, then positions."""
        raise NotImplementedError(f"{type(self).__name__} is no encoder until it defines fill")

    def encode(self, tokens: Tokens) -> Tokens:
        """Run the blocks and the final norm."""
        raise NotImplementedError(f"{type(self).__name__} is no encoder until it defines encode")
