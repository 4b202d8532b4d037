"""Heads: tokens of any encoder enter, a picture of predictions leaves."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from timm.models.swin_transformer import SwinTransformerStage
from torch import Tensor, nn

from mimkit.core.errors import UserError, unknown
from mimkit.model.backbone import Backbone
from mimkit.model.patches import unpatchify

HeadName = Literal["linear", "mlp", "inverse_swin_t", "inverse_swin_b"]
HEADS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...]]] = {  # width, depths, heads: the last stage first
    "inverse_swin_t": (768, (2, 6, 2, 2), (24, 12, 6, 3)),
    "inverse_swin_b": (1024, (2, 18, 2, 2), (32, 16, 8, 4)),
}


def build_head(name: str, encoder: Backbone, outputs: int, cell: int = 1) -> "Head":
    """One of SimMIM's heads (Xie et al. 2022, section 3.4), by name.

    `linear` is one layer, `mlp` two with a GELU between, of the encoder's width; `inverse_swin_t` and `inverse_swin_b`
    are these networks from their last stage to their first. The paper names the latter three and leaves their form
    open; their numbers of parameters come within 0.3 M of the paper's.

    Args:
        outputs: numbers to predict for each square.
        cell: side of the squares in pixels.

    Raises:
        UserError: there is no such head, it needs a Swin of four stages, or squares do not divide what a token covers.
    """
    if name in HEADS:
        if encoder.grid[0] != 8 * encoder.out_grid[0]:
            raise UserError(f"method.head {name} undoes the merging of a Swin with four stages: use linear or mlp")
        width, depths, heads = HEADS[name]
        body: nn.Module = InverseSwin(encoder, width, depths, heads)
        grid, width = encoder.grid, width // 8
    elif name in ("linear", "mlp"):
        grid, width = encoder.out_grid, encoder.width
        body = nn.Sequential(nn.Linear(width, width), nn.GELU()) if name == "mlp" else nn.Identity()
    else:
        raise unknown("head", name, ["linear", "mlp", *HEADS])
    side = (encoder.size[0] // grid[0], encoder.size[1] // grid[1])
    if side[0] % cell or side[1] % cell:
        raise UserError(
            f"target.cell {cell} does not divide the {side[0]}x{side[1]} pixels that a token of this head predicts: "
            f"use {math.gcd(*side)} or a divisor of it, for tokens another tokenizer"
        )
    return Head(body, width, grid, (side[0] // cell, side[1] // cell), outputs)


class Head(nn.Module):
    """A body, then one linear layer that predicts the squares of each token."""

    def __init__(
        self, body: nn.Module, width: int, grid: tuple[int, int], squares: tuple[int, int], outputs: int
    ) -> None:
        super().__init__()
        self.body = body
        self.linear = nn.Linear(width, squares[0] * squares[1] * outputs)
        self.grid, self.squares = grid, squares

    def forward(self, tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B O h w"]:
        """`O` numbers for every square of the picture."""
        return unpatchify(self.linear(self.body(tokens)), self.squares, self.grid)


class InverseSwin(nn.Module):
    """Swin's stages in reverse order: after each but the last a token becomes 2 x 2 tokens of half the width."""

    def __init__(self, encoder: Backbone, width: int, depths: Sequence[int], heads: Sequence[int]) -> None:
        super().__init__()
        # A window as large as the coarsest grid divides every finer one, whose sides are multiples of it.
        grid, window = encoder.out_grid, max(encoder.out_grid)
        self.first_grid = grid
        self.embed = nn.Linear(encoder.width, width)
        self.stages, self.splits = nn.ModuleList(), nn.ModuleList()
        for depth, number in zip(depths, heads, strict=True):
            if len(self.stages):
                self.splits.append(Split(width))
                grid, width = (2 * grid[0], 2 * grid[1]), width // 2
            settings: dict[str, Any] = dict(num_heads=number, window_size=window, downsample=False)
            self.stages.append(SwinTransformerStage(width, width, grid, depth, **settings))
        self.norm = nn.LayerNorm(width)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B N d"]:
        """Tokens of the encoder's patches, row-major."""
        # Stages of Swin want pictures of tokens, (B, h, w, D).
        x = self.stages[0](self.embed(tokens).unflatten(1, self.first_grid))
        for split, stage in zip(self.splits, self.stages[1:], strict=True):
            x = stage(split(x))
        return self.norm(x).flatten(1, 2)


class Split(nn.Module):
    """The inverse of Swin's patch merging: a norm and a linear layer that makes 2 x 2 tokens of half the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * width, bias=False)

    def forward(self, x: Float[Tensor, "B h w D"]) -> Float[Tensor, "B 2*h 2*w D/2"]:
        """Tokens on a grid of twice the sides."""
        # The four children of a token lie beside each other in its channels; they go to its place on the finer grid.
        x = self.expand(self.norm(x)).unflatten(3, (2, 2, -1))
        return torch.movedim(x, 3, 2).flatten(1, 2).flatten(2, 3)
