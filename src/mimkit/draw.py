"""Draw masks: a masker and pictures enter; a picture of its masks and their statistics leave."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import timm
import torch
import tyro
from rich.markup import escape
from rich.table import Table
from scipy.ndimage import distance_transform_edt

from mimkit.console import Arguments
from mimkit.data.loader import evaluation_batches
from mimkit.data.sources import open_pictures
from mimkit.data.views import CenterCrop
from mimkit.errors import UserError
from mimkit.masks import Mask, Masker, RandomMasker
from mimkit.methods.observe import observe
from mimkit.model.patches import patchify
from mimkit.pictures import displayable, masked, save_picture, spread_mask, titled_grid
from mimkit.randomness import keys
from mimkit.train.prepare import Pretrain


@dataclass(kw_only=True)
class MaskArguments(Arguments):
    """Draw a masker's masks on your pictures and count what they hide."""

    data: tuple[str, ...]
    """Pictures, as for pretrain."""
    masker: Annotated[Masker, tyro.conf.arg(name="")] = field(default_factory=RandomMasker)
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


def of_recipe(name: str, run: Pretrain) -> MaskArguments:
    """The masker of a recipe, on images and patches of its size."""
    masker = getattr(run.method, "masker", None)
    if masker is None:
        raise UserError(f"recipe '{name}' hides no patches: choose another one, 'mimkit recipes' lists them")
    with torch.device("meta"):
        vit = timm.create_model(run.encoder.name, **run.encoder.timm_args(run.images.shape(), 3))
    side = vit.get_submodule("patch_embed").get_submodule("proj").kernel_size
    assert isinstance(side, tuple)
    return MaskArguments(masker=masker, data=("photos",), size=run.images.size, patch=side[0])


def draw_masks(arguments: MaskArguments) -> tuple[dict[str, Any], Table]:
    """Write the picture; returns the statistics over all masks drawn, as JSON and as a table."""
    size = (arguments.size, arguments.size) if isinstance(arguments.size, int) else arguments.size
    patch = (arguments.patch, arguments.patch)
    if min(*size, *patch, arguments.show, arguments.seeds) < 1:
        raise UserError("--size, --patch, --show and --seeds must be at least 1")
    if arguments.out.suffix.lower() != ".png":
        raise UserError(f"--out {arguments.out} must end in .png")
    if size[0] % patch[0] or size[1] % patch[1]:
        raise UserError(
            f"{size[0]}x{size[1]} pixels do not divide into patches of {patch[0]}: change --size or --patch"
        )
    pictures = open_pictures(arguments.data, "all")
    mean, std = (0.0,) * pictures.channels, (1.0,) * pictures.channels
    batches = evaluation_batches(
        pictures, size=size, mean=mean, std=std, view=CenterCrop(fraction=1.0), limit=arguments.show
    )
    parts = [batch[0] for batch in batches]
    if not parts:
        raise UserError(f"none of {arguments.show} pictures of {pictures.name} can be read: see 'mimkit doctor'")
    images = torch.cat(parts)
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
    result = {
        "masker": repr(arguments.masker),
        "out": str(arguments.out),
        **mask_statistics(drawn, grid, patch),
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    for key, value in result.items():
        table.add_row(key, f"{value:.4g}" if isinstance(value, float) else escape(str(value)))
    return result, table


def mask_statistics(drawn: list[Mask], grid: tuple[int, int], patch: tuple[int, int]) -> dict[str, Any]:
    """Statistics of masks over a grid of patches.

    `average_distance` is SimMIM's AvgDist (Xie et al. 2022, section 4.1.3): the Euclidean distance of hidden
    pixels to the nearest visible one, in pixels, averaged over hidden pixels, then over masks.
    """
    hidden = torch.cat([mask.hidden for mask in drawn])
    ratios = hidden.float().mean(dim=1)
    distances = []
    for one in spread_mask(hidden, grid, patch)[:, 0].bool().numpy():
        if one.any():
            distance = np.asarray(distance_transform_edt(one))
            distances.append(float(distance[one].mean()))
    return {
        "masks": len(hidden),
        "patches": hidden.shape[1],
        "ratio": ratios.mean().item(),
        "ratio_lowest": ratios.min().item(),
        "ratio_highest": ratios.max().item(),
        "average_distance": sum(distances) / max(1, len(distances)),
    }
