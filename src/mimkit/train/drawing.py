"""Pictures of what a method predicts: a method and a batch enter, a titled grid of images leaves."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from mimkit.core.batch import Batch
from mimkit.core.display import Display, hatched
from mimkit.core.grids import agreement_map, colorize, mask_to_pixels, masked, pasted, patches_to_pixels, titled_grid
from mimkit.data.values import Values
from mimkit.masks import Mask
from mimkit.methods.base import Method
from mimkit.model.backbone import Backbone
from mimkit.model.patches import patchify
from mimkit.train.images import Images
from mimkit.train.run_folder import RunFolder

MOST_CHANNELS = 32  # rows of a grid of channels

Column = tuple[str, Float[Tensor, "B 3 H W"]]
"""A title and images in [0, 1], on the CPU."""


def run_display(folder: Path, values: Values, mean: Sequence[float], std: Sequence[float]) -> Display:
    """As a run shows its images, by the settings in its folder; with defaults where there is no run."""
    run = RunFolder(folder)
    config = run.read_plain_config()["config"] if run.exists else {}
    settings = {key: config.get("images", {}).get(key) for key in ("shown", "stretch", "color_map")}
    shown = tuple(settings["shown"]) if settings["shown"] else None
    images = Images(shown=shown, stretch=settings["stretch"], color_map=bool(settings["color_map"]))
    return images.display(values, mean, std)


def prediction_grid(method: Method, encoder: Backbone, batch: Batch, display: Display) -> Image.Image | None:
    """Original | masked | reconstruction of each picture, and of EMAE's parallel parts too.

    A method that reconstructs nothing may have a map of agreement instead; None where it has neither.
    """
    display, holes = display.fitted(batch.images, batch.valid), display.holes(batch.valid)
    originals = display(batch.images)
    reconstruction = method.reconstruct(batch, 0.0)
    if reconstruction is not None:
        predicted, mask = reconstruction
        shown = display(predicted)
        columns = reconstruction_columns(originals, shown, mask, encoder)
        if mask.views > 1:
            columns += part_columns(originals, predicted, shown, mask, encoder)
        return titled_grid(with_holes(columns, holes), sets=2 if mask.views == 1 else 1)
    agreement = method.agreement(batch, 0.0)
    if agreement is None:
        return None
    values, mask = agreement
    hidden, thrown = one_view(mask, encoder)
    heat = agreement_map(values[:: mask.views], encoder.grid, encoder.patch)
    columns = [("original", originals), ("masked", masked(originals, hidden, thrown)), ("agreement", heat)]
    return titled_grid(with_holes(columns, holes), sets=2 if mask.views == 1 else 1)


def channel_grid(
    method: Method, encoder: Backbone, batch: Batch, display: Display, bands: Sequence[int] | None = None
) -> Image.Image | None:
    """Original | masked | reconstruction of each channel of the first picture, a row each.

    None of a method that reconstructs nothing, and of up to three channels, which are a color. Stretched pictures are
    drawn from dark violet to yellow: gray shows few of their levels.

    Args:
        bands: the numbers that channels have in their files; by default 1, 2, ...
    """
    channels = batch.images.shape[1]
    if channels <= 3 or (reconstruction := method.reconstruct(batch, 0.0)) is None:
        return None
    predicted, mask = reconstruction
    hidden, thrown = one_view(mask, encoder)
    rows: list[list[Column]] = []
    for channel in range(1, min(channels, MOST_CHANNELS) + 1):
        single = replace(display.only(channel), color_map=display.color_map or display.stretch)
        single = single.fitted(batch.images, batch.valid)
        original = single(batch.images[:1])
        filled = pasted(original, single(predicted[:1]), hidden[:1])
        columns = [("original", original), ("masked", masked(original, hidden[:1], thrown[:1]))]
        columns.append(("reconstruction", masked(filled, hidden[:1] * 0, thrown[:1])))
        holes = single.holes(batch.valid)
        rows.append(with_holes(columns, None if holes is None else holes[:1]))
    titles = [title for title, _ in rows[0]]
    sheet = [(title, torch.cat([row[i][1] for row in rows])) for i, title in enumerate(titles)]
    names = [f"band {band}" for band in bands] if bands else [f"channel {i + 1}" for i in range(channels)]
    return titled_grid(sheet, labels=names[: len(rows)])


def with_holes(columns: list[Column], holes: Bool[Tensor, "B 1 H W"] | None) -> list[Column]:
    """Columns that are hatched where pictures have no data."""
    return [(title, hatched(images, holes)) for title, images in columns]


def one_view(mask: Mask, encoder: Backbone, view: int = 0) -> tuple[Float[Tensor, "B 1 H W"], Float[Tensor, "B 1 H W"]]:
    """Hidden and thrown patches of one view of each picture, as pixels; of the first, if no other is named."""
    hidden = mask_to_pixels(mask.hidden[view :: mask.views], encoder.grid, encoder.patch)
    thrown = mask_to_pixels(mask.thrown[view :: mask.views], encoder.grid, encoder.patch)
    return hidden, thrown


def reconstruction_columns(
    originals: Float[Tensor, "B 3 H W"], shown: Float[Tensor, "BK 3 H W"], mask: Mask, encoder: Backbone
) -> list[Column]:
    """Original, masked, and the prediction where patches were hidden; of the first view."""
    hidden, thrown = one_view(mask, encoder)
    filled = pasted(originals, shown[:: mask.views], hidden)
    return [
        ("original", originals),
        ("masked", masked(originals, hidden, thrown)),
        ("reconstruction", masked(filled, hidden * 0, thrown)),
    ]


def part_columns(
    originals: Float[Tensor, "B 3 H W"],
    predicted: Float[Tensor, "BK C H W"],
    shown: Float[Tensor, "BK 3 H W"],
    mask: Mask,
    encoder: Backbone,
) -> list[Column]:
    """The other parallel views of each picture, and how far all of them disagree (dark: not at all)."""
    columns = []
    for view in range(1, mask.views):
        hidden, thrown = one_view(mask, encoder, view)
        columns.append((f"part {view + 1}", masked(originals, hidden, thrown)))
        filled = pasted(originals, shown[view :: mask.views], hidden)
        columns.append(("reconstruction", masked(filled, hidden * 0, thrown)))
    patches = patchify(predicted.float(), encoder.patch).unflatten(0, (-1, mask.views))
    where = mask.hidden.unflatten(0, (-1, mask.views)).unsqueeze(3)
    mean = (patches * where).sum(dim=1) / where.sum(dim=1).clamp(min=1)
    disagreement = ((patches - mean.unsqueeze(1)).square() * where).mean(dim=(1, 3))
    heat = colorize(patches_to_pixels(disagreement, encoder.grid, encoder.patch))
    return [*columns, ("disagreement", heat)]
