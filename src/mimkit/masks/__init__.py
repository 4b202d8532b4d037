"""Masks: maskers (settings) make Masks (values); nothing here holds weights or sees a model."""

from mimkit.masks.mask import Mask
from mimkit.masks.masker import Masker, Signal
from mimkit.masks.random import RandomMasker

__all__ = ["Mask", "Masker", "RandomMasker", "Signal"]


def maskers() -> dict[str, type[Masker]]:
    """Our maskers by the name that the command line takes: `random` for RandomMasker."""
    return {
        name.removesuffix("Masker").lower(): globals()[name]
        for name in __all__
        if name.endswith("Masker") and name != "Masker"
    }
