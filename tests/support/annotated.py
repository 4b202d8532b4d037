"""Annotated pictures for tests: colored fields of several classes and slopes of depth, in memory and as folders."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mimkit.core.annotation import VOID, Annotation, DenseTask
from mimkit.data.annotations.annotated import Annotated
from mimkit.data.decode import BadPicture
from mimkit.data.pictures import Decoded

COLORS = torch.tensor([[200, 40, 30], [40, 180, 60], [30, 60, 210]], dtype=torch.uint8)
NAMES = ("red", "green", "blue")


class InMemory(Annotated):
    """Pictures of one size with a map each: classes (int16), or depths (float32)."""

    def __init__(self, pixels: Tensor, maps: Tensor, bad: tuple[int, ...] = ()) -> None:
        super().__init__(Decoded("painted", pixels, has_test=True))
        self.maps, self.bad = maps, bad
        self.task: DenseTask = "depth" if maps.is_floating_point() else "segment"
        self.categories = () if maps.is_floating_point() else NAMES

    def annotation(self, i: int) -> Annotation:
        if i in self.bad:
            raise BadPicture("torn")
        size = (self.maps.shape[1], self.maps.shape[2])
        if self.task == "depth":
            return Annotation(size=size, depth=self.maps[i])
        return Annotation(size=size, segments=self.maps[i])

    @property
    def annotations_fingerprint(self) -> str:
        return str(self.maps.nan_to_num().sum())


def fields(pictures: int, size: tuple[int, int] = (37, 53), void: float = 0.0, seed: int = 0) -> InMemory:
    """Rectangles of class 1 and 2 on class 0, each class in its own noisy color; a share of the pixels is void."""
    generator = np.random.default_rng(seed)
    maps = torch.zeros(pictures, *size, dtype=torch.int16)
    for picture in maps:
        for number in (1, 2):
            top, left = generator.integers(0, size[0] // 2), generator.integers(0, size[1] // 2)
            picture[top : top + size[0] // 2, left : left + size[1] // 2] = number
    noise = torch.from_numpy(generator.integers(0, 40, (pictures, *size, 3)).astype(np.uint8))
    pixels = (COLORS[maps.long()] + noise).permute(0, 3, 1, 2).contiguous()
    maps[torch.from_numpy(generator.random(maps.shape) < void)] = VOID
    return InMemory(pixels, maps)


def slopes(pictures: int, size: tuple[int, int] = (37, 53), seed: int = 0) -> InMemory:
    """The darker the farther, 1 to 5 meters, with unknown pixels on the upper edge."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(pictures, 1, 1, generator=generator) * 2
    down = torch.linspace(1, 0, size[0])[None, :, None] * torch.rand(pictures, 1, 1, generator=generator) * 2
    depth = 1 + start + down + torch.zeros(pictures, *size)
    gray = (255 * (1 - depth / 6)).to(torch.uint8)
    depth[:, :3] = torch.nan
    return InMemory(gray[:, None].expand(-1, 3, -1, -1).contiguous(), depth)


def write_pairs(root: Path, split: str, pictures: InMemory) -> Path:
    """The same as folder pairs: pictures as PNG, classes as numbers from 0 with 255 for void, depths in millimeters."""
    kind = "depth" if pictures.task == "depth" else "masks"
    for folder in ("images", kind):
        (root / folder / split).mkdir(parents=True, exist_ok=True)
    for i in range(len(pictures)):
        name = f"{split}/{i:03d}.png"
        Image.fromarray(pictures.read(i).permute(1, 2, 0).numpy()).save(root / "images" / name)
        values = pictures.maps[i]
        if pictures.task == "depth":
            stored = (values.nan_to_num(0.0) * 1000).round().numpy().astype(np.uint16)
        else:
            stored = torch.where(values == VOID, 255, values).numpy().astype(np.uint8)
        Image.fromarray(stored).save(root / kind / name)
    return root
