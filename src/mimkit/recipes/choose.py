"""Choose a recipe: pictures and a device enter; a recipe's name, its epochs and the reason leave."""

from statistics import median

import torch

from mimkit.data.decode import BadPicture
from mimkit.data.pictures import Pictures, sample

SEEN_ON_CPU = 1_000_000  # pictures that a small recipe sees in about ten minutes on two cores
MOST = 1600  # epochs
PASSES = 50  # epochs for each picture of a tiny set
SEEN_ON_GPU = 60_000_000  # pictures that ViT-B/16 sees in some hours on one large GPU


def _choice(pictures: Pictures, device: torch.device) -> tuple[str, int, str]:
    sides = []
    for number in sample(len(pictures), 64):
        try:
            sides.append(min(pictures.size(number)))
        except BadPicture:
            continue
    side = int(median(sides)) if sides else 0
    for name, largest in (("mae_mini_28", 28), ("mae_mini_32", 40), ("mae_mini_48", 56), ("mae_mini_64", 80)):
        if side <= largest:
            return name, SEEN_ON_CPU, f"the shorter side of the pictures is about {side} px"
    if device.type == "cpu":
        return "mae_mini_96", SEEN_ON_CPU // 2, f"pictures of about {side} px and no GPU"
    if side <= 160:
        return "mae_mini_96", SEEN_ON_GPU, f"the shorter side of the pictures is about {side} px"
    if len(pictures) < 100_000:
        return "mae_vit_s16", SEEN_ON_GPU, f"{len(pictures):,} pictures of about {side} px and a GPU"
    return "mae_vit_b16", SEEN_ON_GPU, f"{len(pictures):,} pictures of about {side} px and a GPU"


def choose_recipe(pictures: Pictures, device: torch.device) -> tuple[str, int, str]:
    """(name, epochs, why): a small recipe for small pictures or CPUs, ViTs of the papers otherwise.

    The epochs, 2 to 1600, make the number of pictures seen, not of passes, the same for small and large sets. Of a
    handful of pictures there are fewer: many passes over them teach nothing.
    """
    name, total, why = _choice(pictures, device)
    epochs, most = min(MOST, max(2, round(total / len(pictures)))), PASSES * len(pictures)
    if epochs <= most:
        return name, epochs, why
    return name, most, f"{why}; {len(pictures)} pictures are too few to learn from, {most} epochs try everything out"
