"""Pictures for people: tensors of images and masks enter, a titled grid as a PIL image leaves."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

HIDDEN = 0.62  # grey of hidden patches
GAP, TITLE = 6, 22  # pixels between pictures and for the line of titles
SIDE = 112  # pictures are shown at least this large, by a whole factor


def displayable(
    images: Float[Tensor, "B C H W"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "B 3 H W"]:
    """Normalised images as RGB in [0, 1] on the CPU; of other channel counts the first stands for grey."""
    shape = (1, -1, 1, 1)
    images = images.detach().float().cpu()
    images = images * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    if images.shape[1] != 3:
        images = images[:, :1].expand(-1, 3, -1, -1)
    return images.clamp(0, 1)


def spread_mask(hidden: Bool[Tensor, "B N"], grid: tuple[int, int], patch: tuple[int, int]) -> Float[Tensor, "B 1 H W"]:
    """Hidden patches as pixels: 1 hidden, 0 visible."""
    maps = hidden.float().cpu().view(-1, 1, *grid)
    return F.interpolate(maps, scale_factor=(float(patch[0]), float(patch[1])), mode="nearest")


def masked(images: Float[Tensor, "B 3 H W"], hidden: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Images with hidden patches in grey."""
    return images * (1 - hidden) + HIDDEN * hidden


def pasted(
    images: Float[Tensor, "B 3 H W"], predicted: Float[Tensor, "B 3 H W"], hidden: Float[Tensor, "B 1 H W"]
) -> Float[Tensor, "B 3 H W"]:
    """Predictions where hidden, the image where visible."""
    return images * (1 - hidden) + predicted * hidden


def titled_grid(columns: Sequence[tuple[str, Float[Tensor, "B 3 H W"]]], sets: int = 1) -> Image.Image:
    """Columns of equally many images under their titles; `sets` of columns side by side save height.

    Small images are enlarged by a whole factor with nearest neighbours: what is seen is what was computed.
    """
    count, _, height, width = columns[0][1].shape
    factor = max(1, -(-SIDE // max(height, width)))
    height, width = height * factor, width * factor
    rows = -(-count // sets)
    step = len(columns) * (width + GAP) + GAP
    sheet = Image.new("RGB", (sets * step, TITLE + rows * (height + GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    for place in range(count):
        left = GAP + (place // rows) * step
        top = TITLE + (place % rows) * (height + GAP)
        for number, (title, images) in enumerate(columns):
            x = left + number * (width + GAP)
            if place % rows == 0:
                pen.text((x + width / 2, TITLE / 2), title, fill="black", font=font, anchor="mm")
            pixels = (images[place] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            sheet.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST), (x, top))
    return sheet


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG beside and rename, so that a viewer never meets half a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    try:
        picture.save(beside, format="PNG", optimize=True)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
