"""Augmentation as published: the name of a recipe enters, a view leaves; two or more of them are compared.

None of them says how images are normalized; SimCLR learns from values in [0, 1] (images.mean 0, images.std 1).
"""

from dataclasses import replace

from mimkit.data.color import ColorAugment
from mimkit.data.views import RandomResizedCrop, ShiftedCrop


def simclr(strength: float = 1.0, *, blur: bool = True) -> RandomResizedCrop:
    """SimCLR (google-research/simclr: data_util.py); strength 0.5 without blur for CIFAR.

    Brightness is multiplied, as in its second version. The blur mirrors the border, where SimCLR's sees black.
    """
    change = 0.8 * strength
    color = ColorAugment(
        brightness=change,
        contrast=change,
        saturation=change,
        hue=0.2 * strength,
        blur=0.5 if blur else 0.0,
        blur_radius=0.05,
    )
    return RandomResizedCrop(scale=(0.08, 1.0), color=color)


def cmae(margin: float = 0.125, places: int = 32) -> tuple[ShiftedCrop, ShiftedCrop]:
    """CMAE's two views of one box, plain and moved with other colors (ZhichengHuang/CMAE: cmae_dataset.py)."""
    return ShiftedCrop(margin=margin), ShiftedCrop(margin=margin, places=places, color=ColorAugment())


def msn(crops: int = 10, size: int = 96, *, blur: bool = True) -> tuple[RandomResizedCrop, ...]:
    """MSN's two whole views and `crops` small ones of `size` pixels (facebookresearch/msn: src/data_manager.py)."""
    color = ColorAugment(blur=0.5 if blur else 0.0)
    whole, small = RandomResizedCrop(scale=(0.3, 1.0), color=color), RandomResizedCrop(scale=(0.05, 0.3), color=color)
    return (whole, whole, *[replace(small, size=size)] * crops)


def moco_v1() -> RandomResizedCrop:
    """MoCo (facebookresearch/moco: main_moco.py), but gray after the jitter, not before."""
    return RandomResizedCrop(interpolation="bilinear", color=ColorAugment(jitter=1.0, hue=0.4, blur=0.0))


def moco_v2() -> RandomResizedCrop:
    """MoCo v2 (facebookresearch/moco: main_moco.py with --aug-plus)."""
    return RandomResizedCrop(interpolation="bilinear", color=ColorAugment())


def byol(first: bool) -> RandomResizedCrop:
    """One of BYOL's two views (Grill et al. 2020, appendix B), which MoCo v3 took over: only one may be solarized."""
    blur, solarize = (1.0, 0.0) if first else (0.1, 0.2)
    return RandomResizedCrop(scale=(0.08, 1.0), color=ColorAugment(saturation=0.2, blur=blur, solarize=solarize))


def dino(crops: int = 8, size: int = 96, *, blur: bool = True, border: float = 0.4) -> tuple[RandomResizedCrop, ...]:
    """DINO's two whole views and `crops` small ones of `size` pixels (facebookresearch/dino: main_dino.py).

    Small ones show up to a share of `border` of the picture, whole ones at least that. One whole view is blurred
    always; the other rarely, and only that one may be solarized.
    """
    always = ColorAugment(saturation=0.2, blur=1.0 if blur else 0.0, solarize=0.0)
    rarely = ColorAugment(saturation=0.2, blur=0.1 if blur else 0.0, solarize=0.2)
    small = ColorAugment(saturation=0.2, blur=0.5 if blur else 0.0, solarize=0.0)
    whole = [RandomResizedCrop(scale=(border, 1.0), color=color) for color in (always, rarely)]
    return (*whole, *[RandomResizedCrop(scale=(0.05, border), size=size, color=small)] * crops)
