"""Patches and positions: images enter, flat patches leave (and back); a grid enters, sin-cos positions leave."""

import torch
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor


def patchify(images: Shaped[Tensor, "B C H W"], patch: tuple[int, int]) -> Shaped[Tensor, "B N P"]:
    """Cut images into patches: row-major patches, and in a patch (row, column, channel), channel fastest.

    The layout of MAE (facebookresearch/mae:models_mae.py), for any number of channels and rectangular patches.
    """
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch[0], q=patch[1])


def unpatchify(
    patches: Float[Tensor, "B N P"], patch: tuple[int, int], grid: tuple[int, int]
) -> Float[Tensor, "B C H W"]:
    """Undo `patchify`."""
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", p=patch[0], q=patch[1], h=grid[0], w=grid[1])


def sincos_positions(grid: tuple[int, int], width: int) -> Float[Tensor, "N D"]:
    """Fixed 2-D sine-cosine positions: the first half of the channels encodes the column, the second the row.

    Each half holds [sin(p w_k), cos(p w_k)] with w_k = 10000^(-k/(width/4)); computed in float64, returned in float32.
    The order of the halves is that of facebookresearch/mae:util/pos_embed.py (MoCo v3 has them the other way round).
    """
    if width % 4:
        raise ValueError(f"sine-cosine positions need a width divisible by 4, got {width}")
    # In float64: float32 angles of large grids would differ from the released tables in the last digits.
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))

    def encode(positions: Float[Tensor, " N"]) -> Float[Tensor, "N half"]:
        angle = positions[:, None] * omega
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    rows, columns = torch.meshgrid(
        torch.arange(grid[0], dtype=torch.float64), torch.arange(grid[1], dtype=torch.float64), indexing="ij"
    )
    return torch.cat([encode(columns.flatten()), encode(rows.flatten())], dim=1).float()
