"""Names on disk: the classes that a config may name, and what earlier versions called classes, settings and tensors.

config.json is data. A class in it is a short name of this table, which stays while modules move, or `module:Class` of a
package that the person has named or trusts (`trust`); nothing else is imported.
"""

import importlib
import re
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mimkit.core.errors import UserError

FORMAT = 2
"""Of config.json and checkpoints. 1: until version 0.1, with module paths for class names."""

ROOMS = {
    "data.augment": "RandAugment",
    "data.color": "ColorAugment",
    "data.views": "CenterCrop RandomResizedCrop ScaleJitter ShiftedCrop Whole",
    "masks.attentive": "AMTMasker AttMaskMasker MultinomialMasker",
    "masks.inverse": "InverseBlockMasker",
    "masks.mixture": "MixtureMasker",
    "masks.multiblock": "MultiBlockMasker",
    "masks.partition": "ComplementaryMasker PartitionMasker",
    "masks.random": "RandomMasker",
    "masks.salience": "SalienceMasker",
    "masks.self_guided": "SelfGuidedMasker",
    "masks.structured": "BlockMasker GridMasker SimMIMMasker SquareMasker",
    "methods.cmae": "CMAEConfig",
    "masks.topped": "ToppedBlockMasker",
    "methods.bootmae": "BootMAEConfig",
    "methods.cae": "CAEConfig",
    "methods.capi": "CAPIConfig",
    "methods.data2vec": "Data2VecConfig",
    "methods.depth": "DepthConfig",
    "methods.detect": "DetectConfig",
    "methods.dino": "DINOConfig",
    "methods.emae": "EMAEConfig",
    "methods.finetune": "FineTuneConfig",
    "methods.ibot": "IBOTConfig",
    "methods.ijepa": "IJEPAConfig",
    "methods.keypoints": "KeypointsConfig",
    "methods.mae": "MAEConfig",
    "methods.maskalign": "MaskAlignConfig",
    "methods.moco": "MoCoConfig",
    "methods.moco_v3": "MoCoV3Config",
    "methods.msn": "MSNConfig",
    "methods.momentum": "Momentum",
    "methods.mst": "MSTConfig",
    "methods.segment": "SegmentConfig",
    "methods.simclr": "SimCLRConfig",
    "methods.simmim": "SimMIMConfig",
    "methods.targets.color": "ColorBins ColorClusters RawPixels",
    "methods.targets.hog": "HOG",
    "methods.targets.pixels": "Pixels",
    "methods.targets.tokens": "TokenIds",
    "methods.tokenizer": "VQVAEConfig",
    "model.build": "EncoderConfig",
    "model.decoder": "DecoderConfig",
    "model.detection": "MaskRCNNConfig",
    "model.grid_decoder": "GridDecoderConfig",
    "model.latents": "LatentTargetConfig",
    "model.predictor": "PredictorConfig",
    "model.reader": "CrossDecoderConfig",
    "model.tokenizer": "TokenizerConfig",
    "train.images": "Images",
    "train.machine": "Machine",
    "train.optimizer": "AdamWConfig LarsConfig SGDConfig",
    "train.prepare": "Pretrain",
    "train.schedule": "WarmupCosine WarmupLinear WarmupSteps",
}
CLASSES = {name: f"mimkit.{room}" for room, names in ROOMS.items() for name in names.split()}
"""Short class name: the module that it lives in now."""

RENAMED_CLASSES = {
    "data.colours:Colours": "ColorAugment",
    "targets:Colours": "RawPixels",
    "targets:ColourBins": "ColorBins",
    "targets:ColourClusters": "ColorClusters",
    "targets:Tokens": "TokenIds",
}
"""Class paths of format 1, below `mimkit.`, whose last part is no longer the name."""

RENAMED_SETTINGS = {
    "ColorAugment": {"grey": "gray", "solarise": "solarize"},
    "CenterCrop": {"colours": "color"},
    "RandomResizedCrop": {"colours": "color"},
    "Whole": {"colours": "color"},
    "MixtureMasker": {"share": "fraction"},
    "DINOConfig": {"centre_momentum": "center_momentum"},
    "FineTuneConfig": {"share": "label_fraction"},
    "Machine": {"looks": "evals"},
    "AdamWConfig": {"base_rate": "base_lr"},
    "LarsConfig": {"base_rate": "base_lr"},
    "SGDConfig": {"base_rate": "base_lr"},
    "Images": {"others": "other_views", "bad_share": "bad_fraction"},
}
"""By class, settings of format 1 and what they are called now."""

RENAMED_FLAGS = {
    "--share": "--label-fraction",
    "--method.share": "--method.label-fraction",
    "--method.masker.share": "--method.masker.fraction",
    "--method.centre-momentum": "--method.center-momentum",
    "--machine.looks": "--machine.evals",
    "--optimizer.base-rate": "--optimizer.base-lr",
    "--images.bad-share": "--images.bad-fraction",
    "--data.label-column": "--label-column",  # not of 0.1, but as well: --data has no settings
}
"""Flags of version 0.1 and what they are called now; see `renamed_flag` for those of colors."""

RENAMED_TENSORS = (
    (r"^mae\.", ""),  # EMAE had an MAE and is one now
    (r"(^|\.)observer\.trigger$", r"\1mask_sampler.memory"),
    (r"(^|\.)observer\.", r"\1mask_sampler."),
    (r"(^|\.)vit\.", r"\1timm."),
    (r"^centre$", "center"),
)
"""Patterns in the names of tensors of format 1, applied one after the other."""

_trusted: set[str] = set()


def trust(name: str) -> None:
    """Allow classes and functions of a package, by the name of the package or of anything in it, in this process."""
    _trusted.add(name.partition(":")[0].partition(".")[0])


def trusted() -> list[str]:
    """The packages that `trust` has allowed in this process, for a process that it starts."""
    return sorted(_trusted)


def class_name(cls: type) -> str:
    """What a class is called on disk."""
    own = CLASSES.get(cls.__qualname__) == cls.__module__
    return cls.__qualname__ if own else f"{cls.__module__}:{cls.__qualname__}"


def find_class(name: str) -> tuple[type, str]:
    """The class that a config names, and its short name of today.

    Raises:
        UserError: there is none of this name, or it belongs to a package that nobody has named.
    """
    short = name
    if name.startswith("mimkit."):  # format 1 had the path of the module
        path = name.removeprefix("mimkit.")
        short = RENAMED_CLASSES.get(path, path.rpartition(":")[2])
    if short in CLASSES:
        return getattr(importlib.import_module(CLASSES[short]), short), short
    if ":" not in name or name.startswith("mimkit."):
        raise UserError(f"config.json names the class '{name}', which this version of mimkit does not have")
    return import_trusted(name, "config.json names"), name


def import_trusted(path: str, who: str) -> Any:
    """What `package.module:name` stands for, if the person has named the package.

    A class that is loaded already and builds on ours, as one that a notebook defines, needs no import and no trust.

    Raises:
        UserError: nobody has named the package, or there is no such thing in it; `who` names it begins the message.
    """
    module, _, name = path.partition(":")
    loaded = getattr(sys.modules.get(module), name, None)
    if isinstance(loaded, type) and any(base.__module__.startswith("mimkit.") for base in loaded.__mro__):
        return loaded
    package = module.partition(".")[0]
    if package not in _trusted:
        raise UserError(
            f"{who} {path}, code of another package, which mimkit imports only if you say so: --trust {package}"
        )
    try:
        with working_folder_on_path():
            return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{who} {path}, which cannot be imported: put its module on PYTHONPATH") from error


@contextmanager
def working_folder_on_path() -> Generator[None]:
    """Modules of the working folder can be imported, first of all: only for what the person has named."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def renamed_flag(word: str) -> str:
    """A flag of version 0.1 as it is called now; any other word as it is."""
    flag, equals, value = word.partition("=")
    flag = RENAMED_FLAGS.get(flag, flag)
    if flag.startswith("--images."):
        for old, new in (
            ("colours.", "color."),
            (".grey", ".gray"),
            (".solarise", ".solarize"),
            ("others", "other-views"),
        ):
            flag = flag.replace(old, new)
    return flag + equals + value


def rename_tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict of format 1 under the names of today."""
    renamed = {}
    for key, value in state.items():
        for old, new in RENAMED_TENSORS:
            key = re.sub(old, new, key)
        renamed[key] = value
    return renamed
