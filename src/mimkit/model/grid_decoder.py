"""Grid decoder: latents on the full grid of patches enter, convolutions predict something for each patch."""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.core.errors import UserError, at_least


@dataclass(kw_only=True, slots=True)
class GridDecoderConfig:
    """data2vec 2.0's decoder (Baevski et al. 2022, arXiv:2212.07525; facebookresearch/fairseq:examples/data2vec)."""

    layers: int = 6
    """Convolutions, each with its residual; six of them see 13 x 13 patches."""
    kernel: int = 3
    """Their side in patches, an odd number."""
    groups: int = 16
    """Groups of channels that do not mix in a convolution; a divisor of the encoder's width."""

    def build(self, width: int, grid: tuple[int, int], outputs: int) -> "GridDecoder":
        """A decoder of latents of this width that predicts `outputs` numbers a patch."""
        at_least(1, **{f"decoder.{name}": getattr(self, name) for name in ("layers", "kernel", "groups")})
        if self.kernel % 2 == 0:
            raise UserError(f"decoder.kernel must be odd, or the grid would move, got {self.kernel}")
        if width % self.groups:
            raise UserError(f"decoder.groups must divide the encoder's width of {width}, got {self.groups}")
        return GridDecoder(self, width, grid, outputs)


class GridDecoder(nn.Module):
    """Grouped convolutions over the grid, each with a LayerNorm without weights, GELU and a residual; no attention."""

    def __init__(self, config: GridDecoderConfig, width: int, grid: tuple[int, int], outputs: int) -> None:
        super().__init__()
        self.grid = grid
        padding = config.kernel // 2
        self.layers = nn.ModuleList(
            nn.Conv2d(width, width, config.kernel, padding=padding, groups=config.groups) for _ in range(config.layers)
        )
        self.head = nn.Linear(width, outputs)

    def forward(self, latents: Float[Tensor, "B N D"]) -> Float[Tensor, "B N O"]:
        """Predictions for all patches."""
        x = latents
        for convolution in self.layers:
            y = convolution(x.mT.unflatten(2, self.grid)).flatten(2).mT
            x = x + F.gelu(F.layer_norm(y, y.shape[2:]))
        return self.head(x)
