"""Spectrum of patch tokens: a layer's tokens on their grid enter, the log amplitude of rising frequencies leaves."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def frequencies(grid: tuple[int, int]) -> Float[Tensor, " F"]:
    """Those of `log_amplitude` in units of pi a patch: 0, 2/m, 4/m, ... for m patches along the shorter side."""
    short = min(grid)
    return torch.arange(short - short // 2) * (2 / short)


def log_amplitude(tokens: Float[Tensor, "B N D"], grid: tuple[int, int]) -> Float[Tensor, "B F"]:
    """Relative log amplitude along the diagonal: mean over channels of ln(|F(f, f)| + 1e-6), less that of f = 0.

    The discrete Fourier transform of each channel over the grid, at frequencies equal along both axes; on a grid with
    unequal sides the longer one takes its nearest. 0 at frequency 0, as a rule negative beyond: the last entry is the
    "delta log amplitude" of the papers, about -1.5 to -3.5. White noise gives ln(2) / 2 at all others. Unchanged by
    scale, strongly lowered by a constant that all tokens share. Expected: masked models higher than contrastive ones
    in late layers. Source: Park et al. 2023 (arXiv:2305.00729), naver-ai/cl-vs-mim:representation_analysis.ipynb.
    """
    angle = _angles(grid).to(tokens)
    x = tokens.transpose(1, 2)
    amplitude = torch.hypot(x @ angle.cos(), x @ angle.sin())  # (B, D, F): only the diagonal is ever computed
    logarithm = (amplitude + 1e-6).log().mean(dim=1)
    return logarithm - logarithm[:, :1]


def _angles(grid: tuple[int, int]) -> Float[Tensor, "N F"]:
    """2 pi (u r / R + v c / C) for each patch (r, c) and each diagonal frequency (u, v), float64."""
    rows, columns = grid
    step = torch.arange(min(grid) - min(grid) // 2, dtype=torch.float64) / min(grid)
    # Whole numbers of waves on each side, below half of them, which a grid of so many places can tell apart.
    u = (step * rows).round().clamp(max=(rows - 1) // 2) / rows
    v = (step * columns).round().clamp(max=(columns - 1) // 2) / columns
    r = torch.arange(rows * columns) // columns
    c = torch.arange(rows * columns) % columns
    return 2 * math.pi * (r[:, None] * u + c[:, None] * v)
