"""For tests of evaluation: settings of a tiny encoder, noise as images, colored noise and Gaussians in classes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mimkit.data.pictures import Decoded
from mimkit.evaluate.features import Features

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
DATA = {"size": (16, 16), "channels": 3, "mean": (0.1, 0.2, 0.3), "std": (0.3, 0.2, 0.1)}
TINY = {"name": "vit_tiny_patch16_224", "patch": 4, "width": 24, "depth": 2, "heads": 3}


def images(rows: int = 5, size: tuple[int, int] = (16, 16)) -> Tensor:
    return torch.randn(rows, 3, *size, generator=torch.Generator().manual_seed(0))


def colorize(rows: int, name: str = "toy", seed: int = 0) -> Decoded:
    """Noise whose mean color tells three classes apart, but not perfectly."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 3
    noise = torch.randint(0, 120, (rows, 3, 16, 16), generator=generator)
    shift = torch.randint(0, 20, (rows, 3, 1, 1), generator=generator)
    pixels = noise + shift + 60 * F.one_hot(labels, 3)[:, :, None, None]
    return Decoded(name, pixels.to(torch.uint8), labels, ("red", "green", "blue"))


def toy(rows: int, width: int = 12, classes: int = 4, *, seed: int = 0, gap: float = 1.5) -> Features:
    """Gaussian classes on badly scaled axes, with a part that no label tells."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (rows,), generator=generator)
    values = torch.randn(rows, width, generator=generator) + gap * centers[labels]
    return Features({"mean": values * torch.logspace(-3, 3, width) + 5}, labels, 0)
