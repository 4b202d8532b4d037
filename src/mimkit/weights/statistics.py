"""Statistics of released weights: what a config calls them enters, the mean and std of their training leave."""

from pathlib import Path

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from mimkit.core.files import named, read_json_of
from mimkit.core.integrity import refuse_bad_statistics
from mimkit.core.schema import fit

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and std per channel, of pixels in 0..1."""
IMAGENET: Statistics = (tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD))
"""What the papers' code normalizes with."""


def weights_statistics(source: str, name: str) -> Statistics | None:
    """What the pictures were normalized with that weights learned from; None where nothing says it.

    Raises UserError for a file that is damaged.

    Args:
        source: as `load_weights` takes it. A folder, or the folder of a file, says it in config.json (timm's and ours)
            or preprocessor_config.json (Hugging Face's); a bare file is taken for the authors', who take ImageNet's.
        name: the timm architecture, used with `timm` only.
    """
    if source == "timm":
        released = timm.get_pretrained_cfg(name)
        return None if released is None else (tuple(released.mean), tuple(released.std))
    path = Path(source).expanduser()
    if (path / "export" / "config.json").is_file():  # a run folder means its export
        path = path / "export"
    folder = path if path.is_dir() else path.parent
    for entry, *keys in (("config.json", "mean", "std"), ("preprocessor_config.json", "image_mean", "image_std")):
        file = folder / entry
        about = read_json_of(file)
        about = about.get("pretrained_cfg") or about
        with named(file):
            mean, std = (fit(about.get(key), tuple[float, ...] | None, key) for key in keys)
        if mean is not None and std is not None:
            refuse_bad_statistics(mean, std, folder)
            return mean, std
    return None if path.is_dir() else IMAGENET
