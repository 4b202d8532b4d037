"""What fine-tuning does to pictures besides cutting them: pictures and their keys enter, altered ones leave."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from mimkit.core.errors import UserError, at_least
from mimkit.core.randomness import uniform

_BOX, _NOISE = 2, 3  # streams of a view's key; 0 and 1 draw its box and its colors
_TRIES = 10


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """Some random operations on every picture (Cubuk et al. 2019), by timm's auto_augment, on the CPU.

    The defaults are MAE's for fine-tuning, `rand-m9-mstd0.5-inc1`, with bicubic resampling and gray borders. Pictures
    pass through Pillow one by one: in the workers if the set streams, in the training process if it lives in memory.
    """

    magnitude: int = 9
    """Strength of the operations, 0 to 10."""
    spread: float = 0.5
    """Standard deviation of the strength."""
    ops: int = 2
    """Operations on a picture; each is left out half of the time."""
    increasing: bool = True
    """Whether a larger magnitude means a stronger change for every operation."""

    def __post_init__(self) -> None:
        if not (0 <= self.magnitude <= 10 and 0 <= self.spread < math.inf):
            raise UserError(
                f"augment.magnitude lies between 0 and 10 and augment.spread is no less than 0, "
                f"got {self.magnitude} and {self.spread}"
            )
        at_least(1, **{"augment.ops": self.ops})

    def check(self, channels: int) -> None:
        """Refuse pictures that Pillow does not know."""
        if channels not in (1, 3):
            raise UserError(f"view.augment needs pictures of 1 or 3 channels, these have {channels}: leave it out")

    def __call__(self, pictures: UInt8[Tensor, "B C H W"], rng_keys: Int64[Tensor, " B"]) -> UInt8[Tensor, "B C H W"]:
        """Altered pictures (C 1 or 3), each a function of its key; Python's and NumPy's generators are as before."""
        self.check(pictures.shape[1])
        change = _timm(self, gray=pictures.shape[1] == 1)
        # timm draws from Python's and NumPy's global generators: each picture seeds both with its own key, and they
        # are put back, since whoever runs in the same process counts on their state.
        states = random.getstate(), np.random.get_state()
        out = torch.empty_like(pictures)
        try:
            for into, picture, key in zip(out, pictures, rng_keys.tolist(), strict=True):
                random.seed(key % 2**64)  # of a negative number it would take the absolute value
                np.random.seed(key % 2**32)
                changed = change(Image.fromarray(picture.permute(1, 2, 0).squeeze(2).contiguous().numpy()))
                into.copy_(torch.from_numpy(np.array(changed)).view(*into.shape[1:], -1).permute(2, 0, 1))
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
        return out


@lru_cache
def _timm(augment: RandAugment, gray: bool) -> Any:
    from timm.data.auto_augment import rand_augment_transform  # slow to import

    # timm's transform is configured by such a string.
    spec = f"rand-m{augment.magnitude}-n{augment.ops}-mstd{augment.spread:f}-inc{int(augment.increasing)}"
    # Borders that a shift or a turn uncovers become mid gray, in as many channels as the picture has.
    middle = 128 if gray else (128, 128, 128)
    transform = rand_augment_transform(spec, {"img_mean": middle, "interpolation": Image.Resampling.BICUBIC})
    for op in transform.ops:
        if op.name.startswith("Posterize"):  # at the end of the scale timm keeps no bit, which Pillow refuses
            op.level_fn = partial(_some_bits, op.level_fn)
    return transform


def _some_bits(level_fn: Callable[..., tuple[int]], level: float, settings: dict[str, Any]) -> tuple[int]:
    return (max(1, level_fn(level, settings)[0]),)


def erased(
    images: Float[Tensor, "B C H W"], rng_keys: Int64[Tensor, " B"], fraction: float
) -> Float[Tensor, "B C H W"]:
    """Normalized images (changed in place), a share of them with a box of normal noise (Zhong et al. 2020).

    The box is timm's (data/random_erasing.py, mode `pixel`): area 0.02 to 1/3, aspect 0.3 to 1/0.3, ten tries. Keys
    on the CPU.
    """
    _, channels, height, width = images.shape
    # Drawn for all pictures, also those that are left as they are: a picture's box must not depend on its batch.
    noise = uniform(rng_keys, 2 * _TRIES + 3, _BOX).double()
    rows = (noise[:, -1] < fraction).nonzero().flatten()
    if not len(rows):
        return images
    # From here on only pictures that get a box: normal noise for a whole picture is the costly part.
    noise, rng_keys = noise[rows], rng_keys[rows].to(images.device, non_blocking=True)
    area = (0.02 + (1 / 3 - 0.02) * noise[:, :_TRIES]) * (height * width)
    aspect = (math.log(0.3) * (1 - 2 * noise[:, _TRIES : 2 * _TRIES])).exp()
    h = (area * aspect).sqrt().round()
    w = (area / aspect).sqrt().round()
    # timm's loop stops at the first try that fits. All tries are drawn together here, and that one is picked: a loop
    # with its own end for each picture would not run as one batch.
    fits = (h < height) & (w < width)
    first = fits.int().argmax(1, keepdim=True)
    h = (h * fits).gather(1, first).squeeze(1)  # 0, an empty box, when none fits
    w = (w * fits).gather(1, first).squeeze(1)
    top = (noise[:, -3] * (height - h + 1)).floor()
    left = (noise[:, -2] * (width - w + 1)).floor()
    # The four edges cross to the device in one copy.
    edges = torch.stack([top, left, top + h, left + w]).to(images.device).view(4, -1, 1, 1, 1)
    y = torch.arange(height, device=images.device).view(-1, 1)
    x = torch.arange(width, device=images.device)
    inside = (y >= edges[0]) & (x >= edges[1]) & (y < edges[2]) & (x < edges[3])
    rows = rows.to(images.device, non_blocking=True)
    # Normal noise by the inverse of its distribution: the one source of randomness here is uniform and has an address.
    even = uniform(rng_keys, channels * height * width, _NOISE).mul_(2).sub_(1 - 2**-24)  # inside (-1, 1)
    normal = torch.erfinv(even).mul_(math.sqrt(2)).view(-1, channels, height, width)
    return images.index_copy_(0, rows, torch.where(inside, normal, images.index_select(0, rows)))
