"""Statistics of masks: Masks, and the scores and objects that they may follow, enter; numbers leave."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from mimkit.core.randomness import uniform
from mimkit.masks.mask import Mask


def average_distance(mask: Mask, grid: tuple[int, int], patch: tuple[int, int]) -> Float[Tensor, " BK"]:
    """SimMIM's AvgDist of each mask (Xie et al. 2022, section 4.1.3), in pixels.

    The Euclidean distance of a hidden pixel to the nearest visible one, averaged over hidden pixels. Thrown patches are
    not visible and do not count themselves. NaN where nothing is hidden or nothing visible.
    """
    distances = []
    for hidden, gone in zip(mask.hidden, mask.hidden | mask.thrown, strict=True):
        counted = _pixels(hidden.view(grid), patch)
        invisible = _pixels(gone.view(grid), patch)
        if not counted.any() or invisible.all():
            distances.append(math.nan)
            continue
        distances.append(float(np.asarray(distance_transform_edt(invisible))[counted].mean()))
    return torch.tensor(distances)


def _pixels(patches: Bool[Tensor, "rows columns"], patch: tuple[int, int]) -> np.ndarray:
    """Patches as pixels: distances are between pixels, also within a patch."""
    return patches.repeat_interleave(patch[0], 0).repeat_interleave(patch[1], 1).cpu().numpy()


def overlap(hidden: Bool[Tensor, "R N"], second: Bool[Tensor, "R N"]) -> Float[Tensor, " R"]:
    """Share of the hidden patches that another mask hides as well; NaN where nothing is hidden."""
    return (hidden & second).sum(dim=1) / hidden.sum(dim=1)


def random_like(mask: Mask, rng_keys: Int64[Tensor, " B"]) -> Bool[Tensor, "BK N"]:
    """What RandomMasker hides with the same keys, as many patches in each row as this mask hides."""
    # The very noise of RandomMasker, so that this is its mask, whatever the counts.
    order = mask.repeat(uniform(rng_keys, mask.hidden.shape[1])).argsort(dim=1, descending=True, stable=True)
    place = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.zeros_like(mask.hidden).scatter(1, order, place < mask.hidden.sum(dim=1, keepdim=True))


def score_entropy(scores: Float[Tensor, "B N"]) -> Float[Tensor, " B"]:
    """Entropy of each picture's scores, divided by ln N: 1 where all are equal, 0 where one patch has everything.

    Scores become a distribution when they are divided by their sum; the lowest is subtracted first where it is
    negative.
    """
    scores = scores.double()
    scores = scores - scores.amin(dim=1, keepdim=True).clamp(max=0)
    total = scores.sum(dim=1, keepdim=True)
    # All scores 0: nothing is preferred, which is the even distribution.
    fraction = torch.where(total > 0, scores / total, 1 / scores.shape[1])
    return (torch.special.entr(fraction).sum(dim=1) / math.log(scores.shape[1])).float()


def object_hidden(mask: Mask, objects: Float[Tensor, "B N"]) -> Float[Tensor, " BK"]:
    """Share of the object's area that is hidden; NaN where a picture shows no object.

    Args:
        mask: of the pictures.
        objects: share of each patch that belongs to the object, 0..1.
    """
    objects = mask.repeat(objects)
    return (objects * mask.hidden).sum(dim=1) / objects.sum(dim=1)


def mask_statistics(
    drawn: Sequence[Mask],
    rng_keys: Sequence[Int64[Tensor, " B"]],
    grid: tuple[int, int],
    patch: tuple[int, int],
    *,
    scores: Float[Tensor, "B N"] | None = None,
    objects: Float[Tensor, "B N"] | None = None,
) -> dict[str, Any]:
    """Means over all masks of the same pictures; None where there is nothing to take a mean of.

    `overlap_random` is with what RandomMasker draws from the same keys, `overlap_seeds` with the mask of the next
    keys; both are `overlap_expected` on average where masks have nothing to do with each other.

    Args:
        drawn: the masks, one for each seed.
        keys: those that they were drawn with.
        grid: rows and columns of patches.
        patch: height and width of a patch in pixels.
        scores: what the masker made of the pictures, if it looked.
        objects: share of each patch that belongs to the object, where objects are known.
    """
    ratios = torch.cat([mask.hidden.float().mean(dim=1) for mask in drawn])
    thrown = torch.cat([mask.thrown.float().mean(dim=1) for mask in drawn])
    numbers: dict[str, Any] = {
        "masks": len(ratios),
        "patches": drawn[0].hidden.shape[1],
        "ratio": mean(ratios),
        "ratio_lowest": ratios.min().item(),
        "ratio_highest": ratios.max().item(),
    }
    if thrown.any():
        numbers["thrown"] = mean(thrown)
    numbers["average_distance"] = mean(torch.cat([average_distance(mask, grid, patch) for mask in drawn]))
    random = [overlap(mask.hidden, random_like(mask, key)) for mask, key in zip(drawn, rng_keys, strict=True)]
    seeds = [overlap(first.hidden, second.hidden) for first, second in pairwise(drawn)]
    numbers |= {
        "overlap_random": mean(torch.cat(random)),
        "overlap_seeds": mean(torch.cat(seeds)) if seeds else None,
        "overlap_expected": mean(ratios),
        "score_entropy": None if scores is None else mean(score_entropy(scores)),
    }
    if objects is not None:
        numbers["object"] = mean(objects)
        numbers["object_hidden"] = mean(torch.cat([object_hidden(mask, objects) for mask in drawn]))
    return numbers


def mean(values: Tensor) -> float | None:
    """The mean of those that are numbers; None where none is."""
    value = values.float().nanmean().item()
    return None if math.isnan(value) else value
