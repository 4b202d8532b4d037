"""Masks: maskers (settings) make Masks (values); nothing here holds weights or sees a model."""

from mimkit.masks.attentive import AMTMasker, AttMaskMasker, MultinomialMasker
from mimkit.masks.inverse import InverseBlockMasker
from mimkit.masks.mask import Mask
from mimkit.masks.masker import Masker, Signal
from mimkit.masks.mixture import MixtureMasker
from mimkit.masks.multiblock import MultiBlockMasker
from mimkit.masks.ncut import ncut
from mimkit.masks.partition import ComplementaryMasker, PartitionMasker
from mimkit.masks.random import RandomMasker
from mimkit.masks.salience import SalienceMasker
from mimkit.masks.self_guided import SelfGuidedMasker
from mimkit.masks.structured import BlockMasker, GridMasker, SimMIMMasker, SquareMasker
from mimkit.masks.topped import ToppedBlockMasker

__all__ = [
    "AMTMasker",
    "AttMaskMasker",
    "BlockMasker",
    "ComplementaryMasker",
    "GridMasker",
    "InverseBlockMasker",
    "Mask",
    "Masker",
    "MixtureMasker",
    "MultiBlockMasker",
    "MultinomialMasker",
    "PartitionMasker",
    "RandomMasker",
    "SalienceMasker",
    "SelfGuidedMasker",
    "Signal",
    "SimMIMMasker",
    "SquareMasker",
    "ToppedBlockMasker",
    "maskers",
    "ncut",
]


def maskers() -> dict[str, type[Masker]]:
    """Our maskers by the name that the command line takes."""
    return {
        "random": RandomMasker,
        "simmim": SimMIMMasker,
        "square": SquareMasker,
        "block": BlockMasker,
        "topped-block": ToppedBlockMasker,
        "inverse-block": InverseBlockMasker,
        "grid": GridMasker,
        "multi-block": MultiBlockMasker,
        "partition": PartitionMasker,
        "complementary": ComplementaryMasker,
        "salience": SalienceMasker,
        "self-guided": SelfGuidedMasker,
        "attmask": AttMaskMasker,
        "amt": AMTMasker,
        "multinomial": MultinomialMasker,
        "mixture": MixtureMasker,
    }
