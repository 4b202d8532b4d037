"""Data sets with a name: a name enters, pictures leave; their files are local or get downloaded."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import datasets

from mimkit.core.errors import UserError
from mimkit.data.folders import cache_folder, open_folder
from mimkit.data.photos import photos
from mimkit.data.pictures import Decoded, Pictures, Split
from mimkit.data.reading import Reading

NAMES = ("photos", "fashion-mnist", "cifar10", "cifar100", "stl10", "imagenette")
_FASHION = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


def open_named(name: str, split: Split, reading: Reading) -> Pictures:
    """One of NAMES. All have a test split; `all` is the train split, of stl10 with the unlabeled ones."""
    train = split != "test"
    if name == "photos":
        pictures = photos(split)
    elif name == "fashion-mnist":
        pictures = _fashion(train)
    elif name == "cifar10":
        pictures = _cifar(name, datasets.CIFAR10, train)
    elif name == "cifar100":
        pictures = _cifar(name, datasets.CIFAR100, train)
    elif name == "stl10":
        pictures = _stl10({"train": "train", "test": "test", "all": "train+unlabeled"}[split])
    else:
        folder = "imagenette2-160"
        if not (data_folder() / folder).is_dir():
            _download(name, folder, lambda: datasets.Imagenette(str(data_folder()), size="160px", download=True))
        return open_folder(data_folder() / folder, split, reading)
    if reading.channels in (None, pictures.channels):
        return pictures
    return Decoded(name, pictures.tensor(), pictures.labels, pictures.classes, has_test=True, channels=reading.channels)


def data_folder() -> Path:
    """Where data sets are kept: $MIMKIT_DATA or ~/.cache/mimkit/data."""
    return Path(os.environ["MIMKIT_DATA"]) if os.environ.get("MIMKIT_DATA") else cache_folder() / "data"


def _download(name: str, files: str, make: Callable[[], Any]) -> Any:
    """torchvision's data set, downloaded if it is not there."""
    try:
        data_folder().mkdir(parents=True, exist_ok=True)
        return make()
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(
            f"{name} could not be downloaded ({reason}): put {files} into {data_folder()} or "
            "set MIMKIT_DATA to the folder that holds it; 'photos' needs no download"
        ) from None


def _fashion(train: bool) -> Decoded:
    prefix = "train" if train else "t10k"
    for folder in (
        data_folder(),
        data_folder() / "fashion-mnist",
        data_folder() / "FashionMNIST" / "raw",
        Path("/usr/share/datasets/fashion-mnist"),  # Debian's package dataset-fashion-mnist
    ):
        if (folder / f"{prefix}-images-idx3-ubyte.gz").exists():
            pixels = _idx(folder / f"{prefix}-images-idx3-ubyte.gz", 16).view(-1, 1, 28, 28)
            labels = _idx(folder / f"{prefix}-labels-idx1-ubyte.gz", 8).long()
            return Decoded("fashion-mnist", pixels, labels, _FASHION, has_test=True)
    downloaded = _download(
        "fashion-mnist",
        f"{prefix}-images-idx3-ubyte.gz and {prefix}-labels-idx1-ubyte.gz",
        lambda: datasets.FashionMNIST(str(data_folder()), train=train, download=True),
    )
    return Decoded("fashion-mnist", downloaded.data.unsqueeze(1), downloaded.targets.long(), _FASHION, has_test=True)


def _idx(file: Path, start: int) -> torch.Tensor:
    try:
        with gzip.open(file) as opened:
            # A copy: what gzip gives is read-only, and torch warns of tensors that cannot be written.
            return torch.from_numpy(np.frombuffer(opened.read(), np.uint8, offset=start).copy())
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}): fetch it again") from None


def _cifar(name: str, kind: Any, train: bool) -> Decoded:
    downloaded = _download(name, kind.base_folder, lambda: kind(str(data_folder()), train=train, download=True))
    pixels = torch.from_numpy(downloaded.data).permute(0, 3, 1, 2)
    return Decoded(name, pixels, torch.tensor(downloaded.targets), tuple(downloaded.classes), has_test=True)


def _stl10(split: str) -> Decoded:
    downloaded = _download(
        "stl10", "stl10_binary", lambda: datasets.STL10(str(data_folder()), split=split, download=True)
    )
    labels = torch.from_numpy(np.asarray(downloaded.labels)).long()  # -1 of unlabeled ones, as ours
    return Decoded("stl10", torch.from_numpy(downloaded.data), labels, tuple(downloaded.classes), has_test=True)
