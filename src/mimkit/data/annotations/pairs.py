"""Pairs of files: folders enter; each picture with the file beside it that says more of it, and the splits, leave.

A picture and its file have one path, but for a folder that names their kind (`images/` here, `masks/` there) and the
ending. That folder may lie anywhere: images/train/cat/1.jpg and masks/train/cat/1.png, or train/images and train/masks.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.data.annotations.names import FILES as NAMES
from mimkit.data.folders import ENDINGS, Files, Paths, walk
from mimkit.data.layout import arrange
from mimkit.data.pictures import first_few
from mimkit.data.reading import Reading

IMAGES = ("images", "image", "imgs", "img", "pictures", "photos", "jpegimages", "leftimg8bit", "rgb", "color", "colour")
"""Folders of pictures."""
MASKS = ("masks", "mask", "labels", "label", "annotations", "annotation", "segmentations", "segmentation")
MASKS += ("segmentationclass", "gtfine", "gt", "ground_truth", "groundtruth", "semantic", "depth", "boxes")
DEPTHS = ("depth", "depths", "depth_map", "depth_maps", "groundtruth_depth", "gt", "annotations", "labels", "masks")
BOXES = ("boxes", "annotations", "annotation", "labels", "label", "bboxes", "xml", "txt", "masks", "depth")
_SUFFIX = re.compile(
    r"[_-](masks?|labels?|seg(mentation)?|gt|depth|semantic|annotation|lab|im(a?ge?)?|rgb|colou?r|leftimg8bit)$", re.I
)
FEWEST = 5  # pictures that can be parted by address


@dataclass(frozen=True)
class Pairs:
    """Pictures and their files, in one order."""

    name: str
    """What the user called the set."""
    image_root: Path
    images: list[bytes]
    """Below the root."""
    label_root: Path
    labels: list[bytes]
    train: list[int]
    """Numbers of pairs."""
    test: list[int]
    own_split: bool = True
    """Whether the splits are the set's own."""
    notes: tuple[str, ...] = ()

    def pictures(self, numbers: Sequence[int], reading: Reading) -> Files:
        """Those pictures."""
        files = _files(self.name, self.image_root, self.images, numbers, reading)
        files.has_test, files.notes = self.own_split, self.notes
        return files

    def files(self, numbers: Sequence[int]) -> Files:
        """What lies beside them."""
        return _files(self.name, self.label_root, self.labels, numbers, Reading())

    def without(self, numbers: Sequence[int]) -> "Pairs":
        """All others."""
        gone = set(numbers)
        places = [number for number in range(len(self.images)) if number not in gone]
        new = {number: place for place, number in enumerate(places)}
        return replace(
            self,
            images=[self.images[number] for number in places],
            labels=[self.labels[number] for number in places],
            train=[new[number] for number in self.train if number in new],
            test=[new[number] for number in self.test if number in new],
        )


def _files(name: str, root: Path, paths: Sequence[bytes], numbers: Sequence[int], reading: Reading) -> Files:
    return Files(name, root, Paths.pack([paths[number] for number in numbers]), reading=reading)


def find_pairs(root: Path, labels: Path | None, kinds: Sequence[str], endings: Sequence[str], word: str) -> Pairs:
    """The pairs in a folder, or in two.

    Args:
        labels: where the files lie; None: in a folder below `root` that has one of the names `kinds`.
        kinds: such names, the best first.
        endings: of those files, in small letters.
        word: what the files are, for messages: `masks`.

    Raises UserError.
    """
    more = frozenset(ending.encode() for ending in endings)
    # Absolute, since workers and later commands may stand in another folder.
    root = Path(os.path.abspath(root))
    below = list_files(root, more)
    if labels is None:
        images, files = _sides(below, kinds, more, root, word)
        label_root = root
    else:
        label_root = Path(os.path.abspath(labels))
        pictures = [path for path in below if ending_of(path) in ENDINGS]
        # Of a folder with images/ and more, as masks of another task, the pictures alone.
        images = [path for path in pictures if marked(path, IMAGES) is not None] or pictures
        files = [path for path in list_files(label_root, more) if _usable(path, more)]
        if not files:
            raise UserError(f"{labels} holds no {word}: readable endings are {' '.join(endings)}")
    if not images:
        raise UserError(f"{root} holds no pictures beside its {word}: give a folder with images/ and {kinds[0]}/")
    return pairs_of(keyed(images, IMAGES), keyed(files, kinds), word, root, label_root)


def pairs_of(images: dict[bytes, bytes], files: dict[bytes, bytes], word: str, root: Path, label_root: Path) -> Pairs:
    """Pictures and files by their keys, as pairs with splits. Raises UserError where none belong together."""
    pairs, notes = _match(images, files, word, root, label_root)
    train, test, own, split_notes = split_keys([key for key, _, _ in pairs], str(root))
    return Pairs(
        name=str(root),
        image_root=root,
        images=[image for _, image, _ in pairs],
        label_root=label_root,
        labels=[file for _, _, file in pairs],
        train=train,
        test=test,
        own_split=own,
        notes=(*notes, *split_notes),
    )


def list_files(root: Path, more: frozenset[bytes]) -> list[bytes]:
    """Paths of pictures, and of files with these endings, below a folder. Raises UserError."""
    if not root.is_dir():
        raise UserError(f"there is no folder {root}")
    try:
        return list(walk(os.fsencode(root), more).pictures)
    except OSError as error:
        raise UserError(f"cannot read {root}: {error.strerror}") from error


def ending_of(path: bytes) -> str:
    """The ending in small letters."""
    return os.path.splitext(os.fsdecode(path))[1].lower()


def _usable(path: bytes, more: frozenset[bytes]) -> bool:
    """Whether a file may say something of one picture: it has such an ending, and is no file of names or splits."""
    name = os.fsdecode(path.rpartition(b"/")[2])
    return ending_of(path).encode() in more and name not in NAMES and not path.startswith(b"ImageSets/")


def marked(path: bytes, names: Sequence[str]) -> int | None:
    """Which folder of a path, counted from 0, has one of these names; None if none has."""
    folders = path.split(b"/")[:-1]
    return next((place for place, folder in enumerate(folders) if os.fsdecode(folder).lower() in names), None)


def keyed(paths: Sequence[bytes], names: Sequence[str]) -> dict[bytes, bytes]:
    """Paths by what a picture and its file share: without the folder of their kind, and without the ending.

    Raises UserError for two files of one key.
    """
    by_key: dict[bytes, bytes] = {}
    for path in paths:
        folders = path.split(b"/")
        place = marked(path, names)
        if place is not None:
            del folders[place]
        key = os.path.splitext(b"/".join(folders))[0]
        if key in by_key:
            both = " and ".join(os.fsdecode(each) for each in (by_key[key], path))
            raise UserError(f"{both} have one name but for their endings: leave one of them out")
        by_key[key] = path
    return by_key


def _sides(
    paths: Sequence[bytes], kinds: Sequence[str], more: frozenset[bytes], root: Path, word: str
) -> tuple[list[bytes], list[bytes]]:
    """Pictures, and files of the first of the kinds that there is. Raises UserError when there are none."""
    all_kinds = frozenset((*MASKS, *DEPTHS, *BOXES))
    images = [path for path in paths if marked(path, IMAGES) is not None and ending_of(path) in ENDINGS]
    if not images:
        images = [path for path in paths if marked(path, tuple(all_kinds)) is None and ending_of(path) in ENDINGS]
    taken_paths = set(images)
    for kind in kinds:
        files = [path for path in paths if path not in taken_paths and marked(path, (kind,)) is not None]
        usable = [path for path in files if _usable(path, more)]
        if usable:
            return images, usable
    loose = [path for path in paths if ending_of(path) not in ENDINGS and _usable(path, more)]
    if loose and not more & {ending.encode() for ending in ENDINGS}:  # no pictures: they may lie beside pictures
        return images, loose
    lossy = [path for path in paths if path not in taken_paths and ending_of(path) in (".jpg", ".jpeg")]
    hint = f"; {os.fsdecode(lossy[0])} is a JPEG, which changes values: save {word} as PNG" if lossy else ""
    raise UserError(
        f"{root} holds no {word}: put them into {kinds[0]}/ beside images/, with the same names, or give "
        f"--labels FOLDER{hint}"
    )


def _match(
    images: dict[bytes, bytes], files: dict[bytes, bytes], word: str, root: Path, label_root: Path
) -> tuple[list[tuple[bytes, bytes, bytes]], list[str]]:
    """Key, picture and file of each pair, in the order of the pictures, and what is to be said. Raises UserError."""
    notes = []
    if not images.keys() & files.keys():
        images, files = _without_suffix(images), _without_suffix(files)
    pairs = [(key, path, files[key]) for key, path in images.items() if key in files]
    if not pairs:
        first, second = os.fsdecode(next(iter(images.values()))), os.fsdecode(next(iter(files.values())))
        raise UserError(
            f"no picture of {root} has {word} of its name in {label_root}: {first} there and {second} here do not go "
            f"together; give both the same path but for images/ and the ending"
        )
    lone = [os.fsdecode(path) for key, path in images.items() if key not in files]
    if lone:
        notes.append(f"left out: {len(lone):,} pictures without {word}, as {first_few(lone, 3)}")
    idle = [os.fsdecode(path) for key, path in files.items() if key not in images]
    if idle:
        notes.append(f"not used: {len(idle):,} {word} without a picture, as {first_few(idle, 3)}")
    return pairs, notes


def _without_suffix(paths: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Keys without `_mask`, `_leftImg8bit` and the like at their end. Where that makes two one, they stay."""
    keys = {key: os.fsencode(_SUFFIX.sub("", os.fsdecode(key))) for key in paths}
    counts = Counter(keys.values())
    return {keys[key] if counts[keys[key]] == 1 else key: path for key, path in paths.items()}


def split_keys(keys: Sequence[bytes], name: str) -> tuple[list[int], list[int], bool, list[str]]:
    """Numbers to train and to test on, by the folders train and val, else by address; whether they are the set's own.

    Raises UserError when there are too few to be parted.
    """
    layout = arrange(keys)
    notes = [note for note in layout.notes if "left out" in note or "taken for a class" in note]
    if layout.test:
        return layout.train, layout.test, True, notes
    train, test = apart(len(layout.train), name)
    notes.append("no test split of its own: 20 % of the pictures, by address, are tested on")
    return [layout.train[i] for i in train], [layout.train[i] for i in test], False, notes


def by_image_sets(pairs: Pairs, root: Path, kinds: Sequence[str]) -> Pairs:
    """The same pairs with the splits that VOC's `ImageSets/KIND/train.txt` and `val.txt` name, if there are such.

    Lines name pictures without their ending. Raises UserError where a list names none of the pictures.
    """
    folder = next((root / "ImageSets" / kind for kind in kinds if (root / "ImageSets" / kind).is_dir()), None)
    if folder is None:
        return pairs
    train = next((folder / name for name in ("train.txt", "trainval.txt") if (folder / name).is_file()), None)
    test = next((folder / name for name in ("val.txt", "test.txt") if (folder / name).is_file()), None)
    if train is None or test is None:
        return pairs
    names = {os.path.splitext(path.rpartition(b"/")[2])[0]: number for number, path in enumerate(pairs.images)}
    notes = [note for note in pairs.notes if "by address" not in note and "without" not in note]
    splits = []
    for file in (train, test):
        listed = [line.split()[0] for line in file.read_bytes().splitlines() if line.strip()]
        numbers = [names[name] for name in listed if name in names]
        if not numbers:
            raise UserError(f"{file} names none of the {len(names):,} annotated pictures of {root}")
        if len(numbers) < len(listed):
            lone = [os.fsdecode(name) for name in listed if name not in names]
            notes.append(f"left out: {len(lone):,} of {file.name} that have no annotation: {first_few(lone, 3)}")
        splits.append(numbers)
    return replace(pairs, train=splits[0], test=splits[1], own_split=True, notes=tuple(notes))


def apart(count: int, name: str) -> tuple[list[int], list[int]]:
    """Numbers to train and to test on of a set without a split: the same as `pictures.split_by_address` takes.

    Raises UserError when there are too few.
    """
    if count < FEWEST:
        raise UserError(f"{name} has {count} annotated pictures: too few to set some apart for a test")
    order = rng_keys("split", torch.arange(count)).argsort()
    tested = round(0.2 * count)
    return order[tested:].sort().values.tolist(), order[:tested].sort().values.tolist()
