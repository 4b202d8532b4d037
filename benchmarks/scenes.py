"""Pictures whose objects are known, 64 px: made from an address, or COCO's; for `coverage.py`."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from mimkit.core.randomness import rng_keys, uniform

SIZE, PATCH = 64, 8
SIZES = (0.10, 0.45)  # share of a synthetic picture that its object covers


@dataclass(frozen=True)
class Scenes:
    """Pictures, the share of each patch that belongs to the object, and a kind for each picture."""

    pixels: Tensor  # (B, 3, 64, 64) uint8
    objects: Tensor  # (B, N)
    kinds: list[str]


def texture(key: Tensor) -> Tensor:
    """(B, 3, 64, 64) in 0..1: gratings, checks, dots, clouds or grain in two colors."""
    draws = uniform(key, 16).unsqueeze(2).unsqueeze(3)
    x, y = places()
    angle, pitch = draws[:, 0] * math.pi, 3 + 9 * draws[:, 1]
    along = (x * angle.cos() + y * angle.sin()) * pitch + draws[:, 2]
    across = (y * angle.cos() - x * angle.sin()) * pitch + draws[:, 3]
    waves = (2 * math.pi * along).sin(), (2 * math.pi * across).sin()
    coarse = uniform(key, 64, stream=1).view(-1, 1, 8, 8)
    fine = uniform(key, SIZE * SIZE, stream=2).view(-1, SIZE, SIZE)
    kinds = [
        0.5 + 0.5 * waves[0],
        (waves[0] * waves[1] > 0).float(),
        (waves[0] ** 2 * waves[1] ** 2 > 0.4).float(),
        F.interpolate(coarse, (SIZE, SIZE), mode="bicubic").squeeze(1).clamp(0, 1),
        fine,
    ]
    which = (draws[:, 4] * len(kinds)).long().view(1, -1, 1, 1).expand(1, -1, SIZE, SIZE)
    field = torch.stack(kinds).gather(0, which)[0].unsqueeze(1)
    one, other = draws[:, 5:8], draws[:, 8:11]
    return (one + field * (other - one) + 0.1 * (fine.unsqueeze(1) - 0.5)).clamp(0, 1)


def places() -> tuple[Tensor, Tensor]:
    """Centers of pixels in 0..1, across and down."""
    axis = (torch.arange(SIZE) + 0.5) / SIZE
    return axis.expand(SIZE, SIZE), axis.unsqueeze(1).expand(SIZE, SIZE)


def region(key: Tensor, pasted: Tensor) -> Tensor:
    """(B, 64, 64) bool: an ellipse, rectangle or star, or what a wavy line cuts off; of exactly the area drawn."""
    draws = uniform(key, 12, stream=3).unsqueeze(2).unsqueeze(3)
    x, y = places()
    area, angle, stretch = draws[:, 0], draws[:, 1] * 2 * math.pi, 0.6 * 2.8 ** draws[:, 2]
    x, y = x - (0.2 + 0.6 * draws[:, 3]), y - (0.2 + 0.6 * draws[:, 4])
    u, v = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    rays = 3 + (4 * draws[:, 5]).floor()
    shapes = [
        (u / stretch) ** 2 + (v * stretch) ** 2,
        torch.maximum(u.abs() / stretch, v.abs() * stretch),
        (u**2 + v**2).sqrt() / (1 + 0.4 * (rays * torch.atan2(v, u)).cos()),
        u + 0.08 * (2 * math.pi * (1 + 2 * draws[:, 6]) * v + 6 * draws[:, 7]).sin(),
    ]
    which = torch.where(pasted.view(-1, 1, 1), (draws[:, 8] * 3).long(), 3)
    depth = torch.stack(shapes).gather(0, which.expand(-1, SIZE, SIZE).unsqueeze(0))[0].flatten(1)
    count = ((SIZES[0] + (SIZES[1] - SIZES[0]) * area) * SIZE * SIZE).long().flatten(1)
    return (depth.argsort(dim=1).argsort(dim=1) < count).view(-1, SIZE, SIZE)


def synthetic(first: int, count: int) -> Scenes:
    """Pictures number `first` and the following: every other one is two textures that meet, the rest have an object."""
    pixels, objects = [], []
    for number in torch.arange(first, first + count).split(500):
        inside = region(rng_keys("coverage", "region", number), number % 2 == 0)
        front, back = (texture(rng_keys("coverage", part, number)) for part in ("front", "back"))
        pixels.append((torch.where(inside.unsqueeze(1), front, back) * 255).round().to(torch.uint8))
        objects.append(shares(inside.float().unsqueeze(1)))
    kinds = ["two textures" if number % 2 else "object" for number in range(first, first + count)]
    return Scenes(torch.cat(pixels), torch.cat(objects), kinds)


def shares(inside: Tensor) -> Tensor:
    return F.avg_pool2d(inside, PATCH).flatten(1)


def photographs(data: Path) -> Scenes:
    """COCO pictures squeezed to 64 px whose largest object covers 5 to 45 % of them; the others are background."""
    pixels, objects, kinds = [], [], []
    for split in ("train2017", "val2017"):
        known = json.loads((data / "annotations" / f"instances_{split}.json").read_text())
        for picture in known["images"]:
            found = [a for a in known["annotations"] if a["image_id"] == picture["id"] and not a["iscrowd"]]
            if not found:
                continue
            with Image.open(data / "images" / split / picture["file_name"]) as opened:
                image = opened.convert("RGB")
            drawn = Image.new("L", image.size)
            for polygon in max(found, key=lambda a: a["area"])["segmentation"]:
                ImageDraw.Draw(drawn).polygon(polygon, fill=255)
            inside = np.asarray(drawn.resize((SIZE, SIZE), Image.Resampling.BOX))
            if not 0.05 <= inside.mean() / 255 <= 0.45:
                continue
            pixels.append(torch.from_numpy(np.array(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))))
            objects.append(torch.from_numpy(inside / 255).float())
            several = sum(a["area"] > 0.05 * image.width * image.height for a in found) > 1
            kinds.append("several large objects" if several else "one large object")
    return Scenes(torch.stack(pixels).permute(0, 3, 1, 2), shares(torch.stack(objects).unsqueeze(1)), kinds)
