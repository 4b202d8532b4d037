"""Masks: maskers (settings) make Masks (values); nothing here holds weights or sees a model."""

from mimkit.masks.mask import Mask
from mimkit.masks.masker import Masker, Signal
from mimkit.masks.random import RandomMasker

__all__ = ["Mask", "Masker", "RandomMasker", "Signal"]
