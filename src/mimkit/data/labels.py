"""Labels in use: pictures enter; the labeled ones, a share of each class, or an error with the fix leave."""

import torch

from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.data.classes import FIX
from mimkit.data.pictures import Pictures, Subset, place_in_class


def need_labels(pictures: Pictures, purpose: str) -> None:
    """Raises UserError for pictures without labels, with the reason and the fix; `purpose` begins the line."""
    if pictures.labels is not None:
        return
    reason = pictures.no_labels
    # A reason with a colon names its own fix.
    because = f": {reason}" if ": " in reason else f" ({reason}): {FIX}"
    raise UserError(f"{purpose} needs labels, and {pictures.name} has none{because}")


def only_labeled(pictures: Pictures) -> Pictures:
    """The pictures with a label: the set itself where all have one."""
    if pictures.labels is None or not pictures.unlabeled_count:
        return pictures
    return Subset(pictures, (pictures.labels >= 0).nonzero().flatten())


def label_subset(pictures: Pictures, fraction: float, seed: int = 0) -> Pictures:
    """This share of each class, at least one picture of each; a smaller share is a part of a larger one.

    Pictures without a label are left out. Raises UserError without labels, for no share in (0, 1], and for one of fewer
    pictures than classes.
    """
    need_labels(pictures, "fine-tuning")
    if not 0 < fraction <= 1:
        raise UserError(f"the share of labels lies above 0 and up to 1, got {fraction}")
    unlabeled = pictures.unlabeled_count
    pictures = only_labeled(pictures)
    if unlabeled:
        pictures.notes += (f"{unlabeled:,} pictures without a label are left out",)
    if fraction == 1:
        return pictures
    assert pictures.labels is not None
    counts = torch.bincount(pictures.labels)
    kinds = int((counts > 0).sum())
    if fraction * len(pictures) < kinds:
        raise UserError(
            f"--label-fraction {fraction:g} of {len(pictures):,} pictures is less than one for each of {kinds} "
            f"classes: give {kinds / len(pictures):.1g} or more"
        )
    # One order serves every fraction, so a smaller share is a part of a larger one.
    order = rng_keys("share", seed, torch.arange(len(pictures))).argsort()
    quota = (fraction * counts).round().long().clamp(min=1)
    labels = pictures.labels[order]
    return Subset(pictures, order[place_in_class(labels) < quota[labels]].sort().values)
