"""Blocks of a plain ViT, over the whole picture or in windows: images enter, the tokens behind some blocks leave."""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from timm.layers import DropPath
from torch import Tensor

from mimkit.core.errors import UserError
from mimkit.model.backbone import Tokens
from mimkit.model.patches import patchify
from mimkit.model.vit import Encoder, refuse_uneven


def block_outputs(
    encoder: Encoder, images: Float[Tensor, "B C H W"], blocks: Sequence[int], window: int | None = None
) -> list[Tokens]:
    """What some blocks give out, counted from 0: the residual stream, before the final norm.

    With a `window`, blocks attend inside of windows of so many patches a side, but for the last one of each quarter
    of them, which attend everywhere (Li et al. 2022, ViTDet); there are no class and register tokens then.

    Raises:
        UserError: the images do not divide into patches, or these not into windows.
    """
    size = (images.shape[2], images.shape[3])
    refuse_uneven(encoder.patch, size)
    grid = (size[0] // encoder.patch[0], size[1] // encoder.patch[1])
    tokens = encoder.embed(patchify(images, encoder.patch), grid=grid)
    if window is not None:
        refuse_window(window, grid)
        tokens = Tokens(tokens.prefix[:, :0], tokens.patches)
    x, prefix, outputs = encoder.timm.norm_pre(torch.cat(tokens, dim=1)), tokens.prefix.shape[1], {}
    for number, block in enumerate(encoder.timm.blocks):
        if window is None or number in global_blocks(len(encoder.timm.blocks)):
            x = block(x)
        else:  # all but attention treats each token by itself, so the whole block can see windows as pictures
            x = from_windows(block(to_windows(x, grid, window)), grid, window)
        if number in blocks:
            outputs[number] = Tokens(x[:, :prefix], x[:, prefix:])
    return [outputs[number] for number in blocks]


def global_blocks(depth: int) -> tuple[int, ...]:
    """The last block of each quarter: 2, 5, 8 and 11 of 12."""
    return tuple(sorted({max(0, round(depth * quarter / 4) - 1) for quarter in (1, 2, 3, 4)}))


def refuse_window(window: int, grid: tuple[int, int]) -> None:
    """Refuse windows that do not tile the grid of patches, with the next smaller ones that do."""
    if window < 1 or grid[0] % window or grid[1] % window:
        fitting = [n for n in range(1, max(1, window) + 1) if grid[0] % n == 0 == grid[1] % n]
        raise UserError(
            f"windows of {window} patches a side do not tile {grid[0]}x{grid[1]} patches: give --method.window "
            f"{fitting[-1]}, or None for attention over the whole picture"
        )


def to_windows(x: Float[Tensor, "B N D"], grid: tuple[int, int], window: int) -> Float[Tensor, "BW n D"]:
    """Tokens of pictures, row-major, as those of their windows, picture by picture and row-major."""
    rows, columns = grid[0] // window, grid[1] // window
    return rearrange(x, "b (r p c q) d -> (b r c) (p q) d", r=rows, c=columns, p=window, q=window)


def from_windows(x: Float[Tensor, "BW n D"], grid: tuple[int, int], window: int) -> Float[Tensor, "B N D"]:
    """Undo `to_windows`."""
    rows, columns = grid[0] // window, grid[1] // window
    return rearrange(x, "(b r c) (p q) d -> b (r p c q) d", r=rows, c=columns, p=window, q=window)


class WindowedDropPath(DropPath):
    """Drop path of a block in windows: it is left out for all windows of a picture or for none.

    Args:
        windows: of each picture.
    """

    def __init__(self, rate: float, windows: int) -> None:
        super().__init__(rate)
        self.windows = windows

    def forward(self, x: Float[Tensor, "BW n D"]) -> Float[Tensor, "BW n D"]:
        if not self.training:
            return x
        keep = 1 - self.drop_prob
        weights = x.new_empty(x.shape[0] // self.windows, 1, 1).bernoulli_(keep).div_(keep)
        return x * weights.repeat_interleave(self.windows, dim=0)


def drop_whole_pictures(encoder: Encoder, window: int) -> None:
    """Make the drop path of blocks in windows one draw for each picture, as it is without windows."""
    windows = (encoder.grid[0] // window) * (encoder.grid[1] // window)
    blocks: Any = encoder.timm.blocks
    for number, block in enumerate(blocks):
        for name, layer in list(block.named_children()):
            if isinstance(layer, DropPath) and number not in global_blocks(len(blocks)):
                setattr(block, name, WindowedDropPath(layer.drop_prob, windows))
