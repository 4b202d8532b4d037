"""Few labels: pictures with labels and a share enter, a part of them with every class leaves."""

import torch

from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.data.pictures import Pictures, Subset


def label_subset(pictures: Pictures, fraction: float, seed: int = 0) -> Pictures:
    """This share of each class, at least one picture of each; a smaller share is a part of a larger one.

    Raises UserError without labels, for no share in (0, 1], and for one of fewer pictures than classes.
    """
    if pictures.labels is None:
        raise UserError(
            f"fine-tuning needs labels, and {pictures.name} has none: put the pictures of each class into a folder of "
            "its own (DATA/cat/1.jpg, DATA/dog/2.jpg), or give a list of paths with a tab and a label a line"
        )
    if not 0 < fraction <= 1:
        raise UserError(f"the share of labels lies above 0 and up to 1, got {fraction}")
    if fraction == 1:
        return pictures
    counts = torch.bincount(pictures.labels)
    kinds = int((counts > 0).sum())
    if fraction * len(pictures) < kinds:
        raise UserError(
            f"--label-fraction {fraction:g} of {len(pictures):,} pictures is less than one for each of {kinds} "
            f"classes: give {kinds / len(pictures):.1g} or more"
        )
    order = rng_keys("share", seed, torch.arange(len(pictures))).argsort()
    order = order[pictures.labels[order].argsort(stable=True)]  # class after class, by address in each
    # The place of each picture in its own class: its place in the whole order less where its class begins. One order
    # serves every fraction, so a smaller share is a part of a larger one.
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[pictures.labels[order]]
    quota = (fraction * counts).round().long().clamp(min=1)
    return Subset(pictures, order[rank < quota[pictures.labels[order]]].sort().values)
