"""The eight symmetries of a square: keys enter, which of them a picture gets; images enter, turned ones leave.

A symmetry is a number of three bits, applied in this order: 4 exchanges rows and columns, 2 puts the top to the bottom,
1 the left to the right. Without 4 the shape stays, so only these four are drawn for images that are not square.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mimkit.core.randomness import rng_keys, uniform

MIRRORED, UPENDED, TRANSPOSED = 1, 2, 4


def draw_symmetries(keys: Int64[Tensor, " B"], *, square: bool) -> Int64[Tensor, " B"]:
    """A symmetry for each view by its random key, in a stream of its own."""
    symmetry = (uniform(rng_keys("symmetry", keys), 1).squeeze(1) * 8).long()
    return symmetry if square else symmetry & (MIRRORED | UPENDED)


def turned(images: Float[Tensor, "B C H W"], symmetry: Int64[Tensor, " B"]) -> Float[Tensor, "B C H W"]:
    """Each image under its symmetry, on the device of the images; nothing waits for it."""
    bits = symmetry.to(images.device, non_blocking=True).view(-1, 1, 1, 1)
    if images.shape[2] == images.shape[3]:
        images = torch.where((bits & TRANSPOSED) > 0, images.mT, images)
    images = torch.where((bits & UPENDED) > 0, images.flip(2), images)
    return torch.where((bits & MIRRORED) > 0, images.flip(3), images)
