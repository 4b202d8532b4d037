"""Fine-grained sets as they are published: a folder enters; its pictures with their labels and own splits leave.

Known by their files: CUB-200-2011, Flowers-102, the Oxford-IIIT Pets and Food-101.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.io import loadmat

from mimkit.core.errors import UserError
from mimkit.core.files import read_json, read_regular
from mimkit.data.classes import Labels, in_order
from mimkit.data.folders import Files, Paths, index
from mimkit.data.pictures import Split, first_few
from mimkit.data.reading import Reading
from mimkit.data.tables import text_of


class Listed(NamedTuple):
    """What the files of a set say."""

    train: list[tuple[str, str]]
    """Path below the folder, and name of the class."""
    test: list[tuple[str, str]]
    named: bool = True
    """Whether classes have names, and no bare numbers."""


def open_finegrained(folder: Path, split: Split, reading: Reading) -> Files | None:
    """The pictures of such a set; None for any other folder. Raises UserError for files that are damaged."""
    source = next((read for files, read in SETS if all((folder / name).exists() for name in files)), None)
    if source is None:
        return None
    listed = source(folder)
    there = frozenset(index(folder).pictures)
    rows = {"train": listed.train, "test": listed.test}
    classes = in_order(name for members in rows.values() for _, name in members)
    numbers = {name: number for number, name in enumerate(classes)}
    members = rows["test" if split == "test" else "train"]
    present = [(path, name) for path, name in members if os.fsencode(path) in there]
    if not present:
        example = members[0][0] if members else "any picture"
        raise UserError(f"{folder} holds none of the {len(members):,} pictures that its lists name, as {example}")
    paths = Paths.pack([os.fsencode(path) for path, _ in present])
    pictures = Files(str(folder), Path(os.path.abspath(folder)), paths, reading=reading, has_test=True)
    labels = torch.tensor([numbers[name] for _, name in present])
    pictures.set_labels(Labels(numbers=labels, classes=classes, named=listed.named))
    if len(present) < len(members):
        lone = [path for path, _ in members if os.fsencode(path) not in there]
        pictures.notes = (f"left out: {len(lone):,} pictures that the lists name are not there: {first_few(lone, 3)}",)
    return pictures


def _table(file: Path, columns: int) -> list[list[str]]:
    """The words of each line of a file. Raises UserError for a line of another number."""
    try:
        text = text_of(read_regular(file))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split()
        if len(words) != columns:
            raise UserError(f"{file} line {number} has {len(words)} words, not {columns}: get it anew")
        rows.append(words)
    return rows


def _cub(folder: Path) -> Listed:
    """CUB-200-2011: numbers of pictures in four lists."""
    paths = dict(_table(folder / "images.txt", 2))
    labels = dict(_table(folder / "image_class_labels.txt", 2))
    names = dict(_table(folder / "classes.txt", 2))
    trains = dict(_table(folder / "train_test_split.txt", 2))
    rows: dict[str, list[tuple[str, str]]] = {"1": [], "0": []}
    for number, path in paths.items():
        split, label = trains.get(number), labels.get(number)
        if split not in rows or label not in names:
            raise UserError(f"{folder}: picture {number} has no class or no split in its lists: get them anew")
        rows[split].append((f"images/{path}", names[label]))
    return Listed(rows["1"], rows["0"])


def _flowers(folder: Path) -> Listed:
    """Flowers-102: its train and val pictures train, 2,040 in all. Classes are numbers, or as cat_to_name.json says."""
    try:
        labels = loadmat(folder / "imagelabels.mat")["labels"].ravel()
        parts = loadmat(folder / "setid.mat")
        splits = {name: parts[name].ravel() for name in ("trnid", "valid", "tstid")}
    except Exception as error:  # scipy meets damaged bytes
        raise UserError(f"{folder}: imagelabels.mat or setid.mat cannot be read ({error}): get them anew") from error
    file = folder / "cat_to_name.json"
    names = read_json(file, dict[str, str]) if file.is_file() else {}

    def rows(numbers: np.ndarray) -> list[tuple[str, str]]:
        if len(numbers) and not (numbers.min() >= 1 and numbers.max() <= len(labels)):
            raise UserError(f"{folder}: setid.mat names pictures that imagelabels.mat lacks: get them anew")
        classes = [str(int(labels[number - 1])) for number in numbers.tolist()]
        return [
            (f"jpg/image_{number:05d}.jpg", names.get(label, label))
            for number, label in zip(numbers.tolist(), classes, strict=True)
        ]

    return Listed(rows(np.concatenate([splits["trnid"], splits["valid"]])), rows(splits["tstid"]), named=bool(names))


def _pets(folder: Path) -> Listed:
    """The Oxford-IIIT Pets: 37 breeds, which are the names of the pictures but for their number."""

    def rows(name: str) -> list[tuple[str, str]]:
        stems = [words[0] for words in _table(folder / "annotations" / name, 4)]
        return [(f"images/{stem}.jpg", stem.rpartition("_")[0]) for stem in stems]

    return Listed(rows("trainval.txt"), rows("test.txt"))


def _food(folder: Path) -> Listed:
    """Food-101: lists of pictures by class."""

    def rows(name: str) -> list[tuple[str, str]]:
        by_class = read_json(folder / "meta" / name, dict[str, list[str]])
        return [(f"images/{path}.jpg", label) for label, paths in by_class.items() for path in paths]

    return Listed(rows("train.json"), rows("test.json"))


SETS: tuple[tuple[tuple[str, ...], Callable[[Path], Listed]], ...] = (
    (("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt", "images"), _cub),
    (("jpg", "imagelabels.mat", "setid.mat"), _flowers),
    (("images", "annotations/trainval.txt", "annotations/test.txt"), _pets),
    (("images", "meta/train.json", "meta/test.json"), _food),
)
"""Files that tell each, and what reads its lists."""
