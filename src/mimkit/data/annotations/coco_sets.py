"""Sets in COCO's form: a folder, and where they lie elsewhere its JSON files, enter; both splits leave."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mimkit.core.annotation import DenseTask, Joints
from mimkit.core.errors import UserError
from mimkit.data.annotations.coco import CocoFile, read_coco
from mimkit.data.annotations.objects import Objects
from mimkit.data.annotations.outlines import can_draw, coco_masks
from mimkit.data.annotations.pairs import DEPTHS, MASKS, list_files, marked, split_keys
from mimkit.data.folders import ENDINGS, Files, Paths
from mimkit.data.pictures import first_few
from mimkit.data.reading import Reading

_TRAIN = re.compile(r"train(ing)?(\d{4})?$", re.I)
_TESTS = (re.compile(r"val(id|idation)?(\d{4})?$", re.I), re.compile(r"test(ing)?(\d{4})?$", re.I))
_OTHER = ("captions_", "panoptic_", "stuff_", "image_info_", "deepfashion", "sentences_")
_KINDS = {"detect": "instances_", "keypoints": "person_keypoints_"}
SIGMAS = dict(
    zip(
        ("nose", "eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle"),
        (0.026, 0.025, 0.035, 0.079, 0.072, 0.062, 0.107, 0.087, 0.089),
        strict=True,
    )
)
"""How exactly COCO's people are labeled, of either side."""


@dataclass(frozen=True)
class JsonFiles:
    """The JSON files of a set: of both splits, or one of all."""

    train: Path
    test: Path | None = None


def find_json(root: Path, labels: Path | None, task: DenseTask) -> JsonFiles | None:
    """The files of annotations; None where there is none in `root`.

    Raises UserError where it cannot be told which are meant.
    """
    if labels is not None and labels.is_file():
        return JsonFiles(labels)
    place = labels or root
    patterns = ("*.json", "annotations/*.json", "*/_annotations.coco.json", "*/annotations.json")
    files = sorted({file for pattern in patterns for file in place.glob(pattern) if file.is_file()})
    files = [file for file in files if not file.name.startswith(_OTHER) and not file.name.startswith(".")]
    own = [file for file in files if file.name.startswith(_KINDS[task])]
    others = tuple(kind for key, kind in _KINDS.items() if key != task)
    files = own or [file for file in files if not file.name.startswith(others) and _looks_like_coco(file)]
    if not files:
        return None
    splits = [_split_of(file, place) for file in files]
    trains = [file for file, split in zip(files, splits, strict=True) if split == 0]
    tests = [file for split in (1, 2) for file, of in zip(files, splits, strict=True) if of == split]
    if len(trains) == 1 and tests:
        vals = [file for file, split in zip(files, splits, strict=True) if split == 1]
        if len(vals) < 2:
            return JsonFiles(trains[0], tests[0])
    elif len(files) == 1 or len(trains) == 1:
        return JsonFiles((trains or files)[0])
    names = first_few([os.path.relpath(file, place) for file in files], 6)
    raise UserError(f"{place} holds several files of annotations ({names}): name one with --labels FILE.json")


def _looks_like_coco(file: Path) -> bool:
    """Whether a file may be COCO's, by its first bytes; info files of sets are none."""
    with file.open("rb") as handle:
        start = handle.read(1 << 16)
    whole = len(start) < 1 << 16
    return start.lstrip()[:1] == b"{" and (not whole or (b'"annotations"' in start and b'"images"' in start))


def _split_of(file: Path, place: Path) -> int | None:
    """0 train, 1 val, 2 test, by a word in the name of a file or its folder; None: none."""
    for text in (file.stem, os.path.relpath(file.parent, place)):
        for word in re.split(r"[_\-./ ]", text):
            for number, pattern in enumerate((_TRAIN, *_TESTS)):
                if pattern.match(word):
                    return number
    return None


class _Listing:
    """The pictures below a folder, by path and by name."""

    def __init__(self, root: Path) -> None:
        kinds = tuple({*MASKS, *DEPTHS} - {"labels", "annotations"})
        paths = list_files(root, frozenset())
        self.paths = [path for path in paths if marked(path, kinds) is None and _ending(path) in ENDINGS]
        self.known_paths = frozenset(self.paths)
        self.by_name: dict[bytes, list[bytes]] = {}
        for path in self.paths:
            self.by_name.setdefault(path.rpartition(b"/")[2], []).append(path)

    def finder(self, file: Path, root: Path, number: int | None) -> Callable[[str], bytes | None]:
        """Finds pictures that a file of a split names: by its path, else by its name alone.

        Raises UserError where several have it and none lies beside the file or in a folder of its split.
        """
        beside = os.fsencode(os.path.relpath(file.parent, root))
        patterns = (_TRAIN, *_TESTS)

        def near(path: bytes) -> bool:
            folders = path.split(b"/")[:-1]
            in_split = number is not None and any(patterns[number].match(os.fsdecode(folder)) for folder in folders)
            return in_split or b"/".join(folders) == beside

        def find(name: str) -> bytes | None:
            path = os.fsencode(os.path.normpath(name.replace("\\", "/")))
            for candidate in (path, beside + b"/" + path):
                if candidate in self.known_paths:
                    return candidate
            paths = [
                each for each in self.by_name.get(path.rpartition(b"/")[2], []) if (b"/" + each).endswith(b"/" + path)
            ]
            paths = paths or self.by_name.get(path.rpartition(b"/")[2], [])
            closest = [each for each in paths if near(each)] if len(paths) > 1 else paths
            if len(closest) > 1 or (paths and not closest):
                names = first_few([os.fsdecode(each) for each in paths], 3)
                raise UserError(f"{file} names {name}, and {root} has several of it ({names}): write the whole path")
            return closest[0] if closest else None

        return find


def _ending(path: bytes) -> str:
    return os.path.splitext(os.fsdecode(path))[1].lower()


def open_coco(
    root: Path, files: JsonFiles, task: DenseTask, reading: Reading, *, masks: bool | None, bad_fraction: float
) -> tuple[Objects, Objects]:
    """Both splits of a set in COCO's form.

    Args:
        masks: whether masks are read; None: where pycocotools is installed.

    Raises UserError.
    """
    root = Path(os.path.abspath(root))
    listing = _Listing(root)
    notes: list[str] = []
    if masks:
        coco_masks()  # or the extra is missing
    elif masks is None and task == "detect":
        masks = can_draw()
        notes += [] if masks else ["masks are not read: pip install 'mimkit[detect]'"]

    def read(file: Path, number: int | None, as_read: Reading) -> CocoFile:
        return read_coco(
            file,
            listing.finder(file, root, number),
            root,
            listing.paths,
            name=str(root),
            reading=as_read,
            masks=bool(masks) and task == "detect",
            joints=task == "keypoints",
            bad_fraction=bad_fraction,
        )

    own = files.test is not None
    train = read(files.train, 0 if own else None, reading)
    if files.test is not None:
        test = read(files.test, _split_of(files.test, files.test.parent.parent), train.pictures.resolved)
        both = set(train.pictures.paths) & set(test.pictures.paths)
        if both:
            names = first_few([os.fsdecode(path) for path in sorted(both)], 3)
            notes.append(f"{len(both):,} pictures are in both splits, which flatters: {names}")
    else:
        train, test, own, split_notes = _parted(train)
        notes += split_notes
    return _joined(train, test, task, own, notes)


def _parted(whole: CocoFile) -> tuple[CocoFile, CocoFile, bool, list[str]]:
    """One file as two: by folders train and val, else by address."""
    keys = [os.path.splitext(path)[0] for path in whole.pictures.paths]
    train, test, own, notes = split_keys(keys, whole.pictures.name)
    return _some(whole, train), replace(_some(whole, test), notes=()), own, notes


def _some(whole: CocoFile, numbers: Sequence[int]) -> CocoFile:
    paths = whole.pictures.paths
    names = Paths.pack([paths[number] for number in numbers])
    pictures = Files(
        whole.pictures.name, Path(os.fsdecode(whole.pictures._root)), names, reading=whole.pictures.reading
    )
    return replace(whole, pictures=pictures, image_ids=whole.image_ids[list(numbers)], table=whole.table.pick(numbers))


def _joined(
    train: CocoFile, test: CocoFile, task: DenseTask, own: bool, notes: Sequence[str]
) -> tuple[Objects, Objects]:
    """Two sets with one table of classes."""
    categories = _categories(train, test, task)
    ids = {str(entry["id"]): place for place, entry in enumerate(categories)}
    names = _different([str(entry["name"]) for entry in categories], list(ids))
    joints = _joints(categories) if task == "keypoints" else None
    sets = []
    train_notes = [*notes, *train.notes]
    with_masks = train.table.outlines is not None and test.table.outlines is not None
    if task == "detect":
        counts = train.table.counts
        empty = int((counts == 0).sum())
        if empty == len(counts):
            raise UserError(f"{train.pictures.name} has no object to train on in {len(counts):,} pictures")
        train_notes += [f"left out of training: {empty:,} pictures without objects"] if empty else []
    for source in (train, test):
        table = source.table
        numbers = np.array([ids.get(str(entry["id"]), -1) for entry in source.categories], np.int64)
        table = replace(table, labels=numbers[table.labels], outlines=table.outlines if with_masks else None)
        annotated = Objects(source.pictures, table, names, task=task, joints=joints)
        annotated.has_test = own
        annotated.category_ids = tuple(entry["id"] for entry in categories)
        annotated.image_ids = source.image_ids
        sets.append(annotated)
    sets[0].notes, sets[1].notes = tuple(train_notes), test.notes if own else ()
    return sets[0], sets[1]


def _categories(train: CocoFile, test: CocoFile, task: DenseTask) -> list[dict[str, Any]]:
    """Categories of both files in the order of their ids. Raises UserError where one id has two names."""
    by_id: dict[str, dict[str, Any]] = {}
    for entry in (*train.categories, *test.categories):
        identity = entry["id"]
        before = by_id.setdefault(str(identity), entry)
        if before["name"] != entry["name"]:
            raise UserError(f"the category {identity} is {before['name']} and {entry['name']}: give each its own id")
    used = {str(source.categories[label]["id"]) for source in (train, test) for label in np.unique(source.table.labels)}
    groups = {entry.get("supercategory") or "" for entry in by_id.values()}
    # Roboflow writes the name of the whole set as a category of its own, which nothing has.
    listed = [
        entry
        for key, entry in by_id.items()
        if key in used or not (entry["name"] in groups and entry.get("supercategory") in (None, "none", ""))
    ]
    if task == "keypoints":
        listed = [entry for entry in listed if entry.get("keypoints")]
        lacking = used - {str(entry["id"]) for entry in listed}
        if lacking:
            raise UserError(f"the categories {', '.join(sorted(lacking))} name no keypoints: leave their objects out")
    return sorted(listed, key=lambda entry: _order(entry["id"]))


def _order(identity: int | str) -> tuple[bool, int, str]:
    """Numbers by value, also where they are texts; words behind them."""
    text = str(identity)
    number = int(text) if text.lstrip("-").isdecimal() else 0
    return not text.lstrip("-").isdecimal(), number, text


def _different(names: list[str], ids: list[str]) -> tuple[str, ...]:
    """Names, with the id behind those that several have."""
    return tuple(name if names.count(name) == 1 else f"{name} ({key})" for name, key in zip(names, ids, strict=True))


def _joints(categories: Sequence[dict[str, Any]]) -> Joints:
    """The skeleton that the categories share. Raises UserError where they have several, or none that is one."""
    names = {tuple(map(str, entry["keypoints"])) for entry in categories}
    if len(names) != 1:
        raise UserError(f"the categories have {len(names)} kinds of joints: train on one of them at a time")
    joints = names.pop()
    ends = range(1, len(joints) + 1)
    skeleton = [pair for pair in categories[0].get("skeleton") or () if isinstance(pair, list) and len(pair) == 2]
    return Joints(
        names=joints,
        mirrored=mirrored(joints),
        bones=tuple((a - 1, b - 1) for a, b in skeleton if a in ends and b in ends),
        sigmas=_sigmas(joints),
    )


def mirrored(names: Sequence[str]) -> tuple[int, ...]:
    """Which joint each becomes in a mirrored picture, by left and right in the names."""
    swaps = {"left": "right", "right": "left", "l": "r", "r": "l"}

    def swapped(name: str) -> str:
        words = re.split(r"([_\- .])", name.lower())
        whole = [swaps.get(word, word) for word in words]
        if whole == words:
            return re.sub(r"left|right", lambda match: swaps[match[0]], name.lower())
        return "".join(whole)

    numbers = {name.lower(): number for number, name in enumerate(names)}
    return tuple(numbers.get(swapped(name), number) for number, name in enumerate(names))


def _sigmas(names: Sequence[str]) -> tuple[float, ...]:
    """COCO's, where the joints are COCO's 17; else empty."""
    ends = [name.lower().replace("left_", "").replace("right_", "") for name in names]
    complete = len(names) == 17 and set(ends) == set(SIGMAS)
    return tuple(SIGMAS[end] for end in ends) if complete else ()
