"""Pictures for people: tensors of images and masks enter, a titled grid as a PIL image leaves."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

HIDDEN = 0.62  # gray of hidden patches
THROWN = 0.88  # light gray of patches thrown away, which nobody sees or predicts
FADED = 0.75  # how far what is not meant is faded to white
RAMP = (0.27, 0.0, 0.33), (0.23, 0.32, 0.55), (0.13, 0.57, 0.55), (0.37, 0.79, 0.38), (0.99, 0.91, 0.14)  # low to high
GAP, TITLE = 6, 22  # pixels between pictures and for the line of titles
SIDE = 112  # pictures are shown at least this large, by a whole factor


def mask_to_pixels(
    hidden: Bool[Tensor, "B N"], grid: tuple[int, int], patch: tuple[int, int]
) -> Float[Tensor, "B 1 H W"]:
    """Hidden patches as pixels: 1 hidden, 0 visible."""
    return patches_to_pixels(hidden.float(), grid, patch)


def patches_to_pixels(
    values: Float[Tensor, "B N"], grid: tuple[int, int], patch: tuple[int, int]
) -> Float[Tensor, "B 1 H W"]:
    """A number for each patch as pixels, on the CPU."""
    maps = values.detach().float().cpu().reshape(-1, 1, *grid)
    return F.interpolate(maps, scale_factor=(float(patch[0]), float(patch[1])), mode="nearest")


def masked(
    images: Float[Tensor, "B 3 H W"], hidden: Float[Tensor, "B 1 H W"], thrown: Float[Tensor, "B 1 H W"] | None = None
) -> Float[Tensor, "B 3 H W"]:
    """Images with hidden patches in gray, and those thrown away in a lighter one."""
    images = images * (1 - hidden) + HIDDEN * hidden
    return images if thrown is None else images * (1 - thrown) + THROWN * thrown


def faded(images: Float[Tensor, "B 3 H W"], inside: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Images as they are inside (1) and nearly white outside (0)."""
    return images + (1 - inside) * FADED * (1 - images)


def colorize(maps: Float[Tensor, "B 1 H W"], bounds: tuple[float, float] | None = None) -> Float[Tensor, "B 3 H W"]:
    """Numbers as colors, dark violet to yellow: in each picture from its lowest to its highest, or between bounds."""
    low, high = maps.amin(dim=(1, 2, 3), keepdim=True), maps.amax(dim=(1, 2, 3), keepdim=True)
    if bounds is not None:
        maps = maps.clamp(*bounds)
        low, high = torch.full_like(low, bounds[0]), torch.full_like(high, bounds[1])
    place = ((maps - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny))[:, 0] * (len(RAMP) - 1)
    # Between the two nearest colors of the ramp; the last one has none above it, so it is reached from the one below.
    ramp = torch.tensor(RAMP)
    below = place.floor().long().clamp(max=len(RAMP) - 2)
    return torch.lerp(ramp[below], ramp[below + 1], (place - below).unsqueeze(-1)).permute(0, 3, 1, 2)


def agreement_map(
    values: Float[Tensor, "B N"], grid: tuple[int, int], patch: tuple[int, int]
) -> Float[Tensor, "B 3 H W"]:
    """Numbers of 0 to 1 for each patch as colors, gray where they are NaN."""
    nothing = patches_to_pixels(values.isnan().float(), grid, patch)
    return masked(colorize(patches_to_pixels(values.nan_to_num(0.0), grid, patch), (0, 1)), nothing)


def pasted(
    images: Float[Tensor, "B 3 H W"], predicted: Float[Tensor, "B 3 H W"], hidden: Float[Tensor, "B 1 H W"]
) -> Float[Tensor, "B 3 H W"]:
    """Predictions where hidden, the image where visible."""
    return images * (1 - hidden) + predicted * hidden


def titled_grid(
    columns: Sequence[tuple[str, Float[Tensor, "B 3 H W"]]], sets: int = 1, labels: Sequence[str] = ()
) -> Image.Image:
    """Columns of equally many images under their titles; `sets` of columns side by side save height.

    `labels` stand left of the rows. Small images are enlarged by a whole factor with nearest neighbors: what is seen
    is what was computed. A column is as wide as its images and all titles.
    """
    count, _, height, width = columns[0][1].shape
    # A whole factor: each pixel becomes a square, and nothing is interpolated.
    factor = max(1, -(-SIDE // max(height, width)))
    height, width = height * factor, width * factor
    font = ImageFont.load_default(size=13)
    # Wide enough for the longest title, else neighbors would overprint it.
    cell = max(width, *(math.ceil(font.getlength(title)) for title, _ in columns))
    margin = max((GAP + math.ceil(font.getlength(label)) for label in labels), default=0)
    rows = -(-count // sets)
    step = margin + len(columns) * (cell + GAP) + GAP
    sheet = Image.new("RGB", (sets * step, TITLE + rows * (height + GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    for place in range(count):
        left = GAP + margin + (place // rows) * step
        top = TITLE + (place % rows) * (height + GAP)
        if labels:
            pen.text((left - GAP, top + height / 2), labels[place], fill="black", font=font, anchor="rm")
        for number, (title, images) in enumerate(columns):
            x = left + number * (cell + GAP)
            if place % rows == 0:
                pen.text((x + cell / 2, TITLE / 2), title, fill="black", font=font, anchor="mm")
            pixels = (images[place] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            enlarged = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (x + (cell - width) // 2, top))
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
