"""Draw masks: a masker and pictures enter; a picture of its masks and their statistics leave."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.table import Table
from scipy.ndimage import distance_transform_edt

from mimkit.data.loader import evaluation_batches
from mimkit.data.sources import open_pictures
from mimkit.data.views import CenterCrop
from mimkit.errors import UserError
from mimkit.masks import Mask, Masker, RandomMasker
from mimkit.methods.observe import observe
from mimkit.model.encoder import refuse_uneven
from mimkit.model.patches import patchify
from mimkit.pictures import displayable, masked, save_picture, spread_mask, titled_grid
from mimkit.randomness import keys


@dataclass(kw_only=True)
class MaskArguments:
    """Draw a masker's masks on your pictures and count what they hide."""

    data: tuple[str, ...]
    """Pictures, as for pretrain."""
    masker: Annotated[Masker, tyro.conf.arg(name="")] = RandomMasker()
    size: int | tuple[int, int] = 224
    """Side of the images in pixels, or height and width."""
    patch: int = 16
    """Side of a patch in pixels."""
    out: Path = Path("masks.png")
    """The picture to write."""
    show: int = 6
    """Pictures to draw."""
    seeds: int = 4
    """Masks to draw on each."""
    json: str | None = None
    """Write the statistics as JSON to this file, or to the standard output with `-`."""


def draw_masks(arguments: MaskArguments) -> tuple[dict[str, Any], Table]:
    """Write the picture; returns the statistics over all masks drawn, as JSON and as a table."""
    size = (arguments.size, arguments.size) if isinstance(arguments.size, int) else arguments.size
    patch = (arguments.patch, arguments.patch)
    refuse_uneven(patch, size)
    if arguments.show < 1 or arguments.seeds < 1:
        raise UserError("--show and --seeds must be at least 1")
    pictures = open_pictures(arguments.data, "all")
    mean, std = (0.0,) * pictures.channels, (1.0,) * pictures.channels
    batches = evaluation_batches(
        pictures, size=size, mean=mean, std=std, view=CenterCrop(fraction=1.0), limit=arguments.show
    )
    images = torch.cat([batch[0] for batch in batches])
    grid = (size[0] // patch[0], size[1] // patch[1])
    signal = observe(arguments.masker.reads(0.0), patchify(images, patch))
    originals = displayable(images, mean, std)
    columns, drawn = [("original", originals)], []
    for seed in range(arguments.seeds):
        mask = arguments.masker(signal, keys("masks", seed, torch.arange(len(images))), 0.0, grid)
        drawn.append(mask)
        hidden = spread_mask(mask.hidden[:: mask.views], grid, patch)
        columns.append((f"seed {seed}", masked(originals, hidden)))
    try:
        save_picture(titled_grid(columns), arguments.out)
    except OSError as error:
        raise UserError(f"cannot write {arguments.out}: {error.strerror or error}") from error
    result = {"masker": repr(arguments.masker), "out": str(arguments.out), **mask_statistics(drawn, grid, patch)}
    table = Table(box=None, pad_edge=False, show_header=False)
    for key, value in result.items():
        table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    return result, table


def mask_statistics(drawn: list[Mask], grid: tuple[int, int], patch: tuple[int, int]) -> dict[str, Any]:
    """Statistics of masks over a grid of patches.

    `average_distance` is SimMIM's AvgDist (Xie et al. 2022, section 4.1.3): the Euclidean distance in pixels of hidden
    pixels to the nearest visible one, averaged over hidden pixels, then over masks.
    """
    hidden = torch.cat([mask.hidden for mask in drawn])
    ratios = hidden.float().mean(dim=1)
    distances = []
    for one in spread_mask(hidden, grid, patch)[:, 0].bool().numpy():
        if one.any():
            distances.append(float(distance_transform_edt(one)[one].mean()))
    return {
        "masks": len(hidden),
        "patches": hidden.shape[1],
        "ratio": ratios.mean().item(),
        "ratio_lowest": ratios.min().item(),
        "ratio_highest": ratios.max().item(),
        "average_distance": sum(distances) / max(1, len(distances)),
    }
