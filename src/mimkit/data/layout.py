"""Layout: the paths of pictures in a folder or an archive enter; which are to train and to test, and classes, leave.

Only names are looked at, so the same rules hold wherever the bytes lie. A path is relative and has `/` between folders.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from mimkit.core.errors import UserError
from mimkit.data.classes import UNLABELED, Labels, in_order
from mimkit.data.pictures import Split, first_few

_TRAIN = re.compile(r"train(ing)?(\d{4})?$", re.IGNORECASE)
_TEST = re.compile(r"(val|valid|validation|test|testing)(\d{4})?$", re.IGNORECASE)
_TEST_ORDER = ("val", "valid", "validation", "test", "testing")
_UNLABELED = re.compile(r"unlabell?ed(\d{4})?$", re.IGNORECASE)
_IMAGES = re.compile(r"(images?|imgs?|pictures|jpegimages|leftimg8bit)$", re.IGNORECASE)
_ANNOTATIONS = re.compile(
    r"(annotations?|masks?|labels?|segmentation(s|class|classaug|classraw|object)?|imagesets|panoptic\w*|"
    r"stuffthingmaps|pixelmaps|gt|gtfine|gtcoarse|ground_?truth|__macosx)(_?\d{4})?$",
    re.IGNORECASE,
)
_VOC = frozenset({b"SegmentationClass", b"SegmentationObject", b"SegmentationClassAug", b"SegmentationClassRaw"})


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The two splits of a set, or all of it as `train`."""

    train: list[int]
    """Numbers of paths."""
    test: list[int]
    """Empty without a test split of its own."""
    train_folder: bytes = b""
    """What all paths of the split begin with, where it is a folder: `train/`."""
    test_folder: bytes = b""
    labels: Labels = field(default_factory=Labels)
    """Of `train` and behind them of `test`."""
    notes: tuple[str, ...] = ()

    def of(self, split: Split) -> tuple[list[int], bytes, Labels]:
        """Numbers, folder and labels of a split."""
        if split == "test" and self.test:
            return self.test, self.test_folder, self.labels.at(slice(len(self.train), None))
        return self.train, self.train_folder, self.labels.at(slice(0, len(self.train)))


def arrange(paths: Sequence[bytes]) -> Layout:
    """Find splits and classes in the names of folders.

    `train` is a split where every folder beside it is one too or certainly no class, or where another split has folders
    of the same names in it; else it is a class as any other. The folders right in a split, or in the whole, are classes
    when all pictures of the split lie in one and there are two or more. Masks and annotations beside `images` or in a
    VOC folder are left out.
    """
    notes: list[str] = []
    firsts = _first_folders(paths)
    numbers, base = _pictures(paths, Counter(firsts), notes)
    relative = paths
    if base or len(numbers) < len(paths):
        relative = [paths[number][len(base) :] for number in numbers]
        firsts = _first_folders(relative)
    tops = Counter(firsts)
    train, test = _splits(tops, relative, notes)
    if train is None:
        tests = sorted(top for top in tops if top and _TEST.match(os.fsdecode(top)))
        labels, note = _labels(relative, firsts, [])
        if any(b"JPEGImages/" in path for path in relative):
            labels, note = Labels(reason="the classes of a VOC folder are in its annotations, which are not read"), []
        elif len(tests) > 1 and len(tests) == len(tops):
            labels = Labels(reason=f"{_listed(tests)} are splits, and there is no train beside them")
        return Layout(train=numbers, test=[], labels=labels, notes=(*notes, *note))
    in_train = [place for place, top in enumerate(firsts) if top == train]
    in_test = [place for place, top in enumerate(firsts) if top == test]
    others = Counter({top: count for top, count in tops.items() if top not in (train, test)})
    if others:
        notes.append(f"left out: {_counted(others)}, since {_listed([train, *([test] if test else [])])} are there")
    inner = [relative[place][len(train) + 1 :] for place in in_train]
    tested = [relative[place][len(test or b"") + 1 :] for place in in_test]
    labels, note = _labels(inner, _first_folders(inner), _first_folders(tested))
    return Layout(
        train=[numbers[place] for place in in_train],
        test=[numbers[place] for place in in_test],
        train_folder=base + train + b"/",
        test_folder=base + test + b"/" if test else b"",
        labels=labels,
        notes=(*notes, *note),
    )


def _first_folders(paths: Sequence[bytes]) -> list[bytes]:
    """The first folder of each path, empty where it lies in none."""
    return [path[: max(path.find(b"/"), 0)] for path in paths]


def _pictures(paths: Sequence[bytes], tops: Counter[bytes], notes: list[str]) -> tuple[list[int], bytes]:
    """Numbers of the paths without masks and annotations, and the folder `images/` that holds them all, if one does."""
    images = [top for top in tops if _IMAGES.match(os.fsdecode(top))]
    annotations = {top for top in tops if _ANNOTATIONS.match(os.fsdecode(top))}
    if len(images) == 1 and annotations and set(tops) <= {images[0], *annotations, b""}:
        others = Counter({top: count for top, count in tops.items() if top != images[0]})
        notes.append(f"left out: {_counted(others)}, since the pictures lie in {_listed(images)}")
        base = images[0] + b"/"
        return [number for number, path in enumerate(paths) if path.startswith(base)], base
    if not any(b"JPEGImages/" in path for path in paths):
        return list(range(len(paths))), b""
    drawn = Counter(name for path in paths for name in path.split(b"/")[:-1] if name in _VOC)
    if drawn:
        notes.append(f"left out: {_counted(drawn)}, which hold annotations")
    return [number for number, path in enumerate(paths) if not _VOC & set(path.split(b"/")[:-1])], b""


def _splits(tops: Counter[bytes], paths: Sequence[bytes], notes: list[str]) -> tuple[bytes | None, bytes | None]:
    """The folders of the train and the test split, if there are such."""
    names = {top: os.fsdecode(top) for top in tops if top}
    train = next((top for top in sorted(names) if _TRAIN.match(names[top])), None)
    tests = [top for top in names if _TEST.match(names[top])]
    # Of several (val and test) the one for choosing settings comes first: what is called test is for the end.
    test = min(tests, key=lambda top: (_TEST_ORDER.index(names[top].lower().rstrip("0123456789")), top), default=None)
    if train is None:
        return None, None
    aside = (_TRAIN, _TEST, _UNLABELED, _ANNOTATIONS)
    strangers = [top for top in names if not any(pattern.match(names[top]) for pattern in aside)]
    if strangers and not _agree(train, test, strangers, paths):
        beside = first_few([names[top] for top in sorted(strangers)], 3)
        verb = "lies" if len(strangers) == 1 else "lie"
        notes.append(f"the folder {names[train]} is taken for a class, since {beside} {verb} beside it")
        return None, None
    return train, test


def _agree(train: bytes, test: bytes | None, strangers: list[bytes], paths: Sequence[bytes]) -> bool:
    """Whether what is in train and test tells that they are splits, whatever lies beside them.

    So they are when they share names of folders that none of the others has, and when train has several folders
    and the others have none.
    """
    inner: dict[bytes, set[bytes]] = {top: set() for top in (train, test, *strangers) if top}
    for path in paths:
        folders = path.split(b"/", 2)
        if len(folders) == 3 and folders[0] in inner:
            inner[folders[0]].add(folders[1])
    shared = inner[train] & inner[test] if test else set()
    if test and len(inner[train]) > 1 and not any(inner[top] for top in strangers):
        return True
    return bool(shared) and not any(shared & inner[top] for top in strangers)


def _labels(paths: Sequence[bytes], train: list[bytes], test: list[bytes]) -> tuple[Labels, list[str]]:
    """Labels by the first folders in both splits, and what is to be said of them; `paths` are those to train on."""
    folders = (train, test)
    kinds = [set(tops) for tops in folders]
    whole = [tops if b"" not in tops else set() for tops in kinds]  # names count where no picture lies loose
    notes = []
    if len(whole[1]) == 1 and len(whole[0]) > 1 and not whole[1] & whole[0]:
        notes.append(f"test pictures in {_listed(whole[1])}, which is no class to train on, have no label")
        whole[1] = set()
    bare = {top for top in whole[0] | whole[1] if _UNLABELED.match(os.fsdecode(top))}
    names = (whole[0] | whole[1]) - bare
    if len(names) < 2:
        return Labels(reason=_without_classes(paths, train, kinds[0])), notes
    if bare:
        notes.append(f"pictures in {_listed(bare)} have no label")
    classes = in_order(os.fsdecode(name) for name in names)
    # Names are compared as bytes: those of files need not be valid text.
    number = {os.fsencode(name): i for i, name in enumerate(classes)}
    # Classes of both splits together, so that a class without test pictures leaves the numbers of the others alone.
    numbers = [number.get(top, UNLABELED) if whole[0] else UNLABELED for top in train]
    numbers += [number.get(top, UNLABELED) for top in test]
    return Labels(numbers=torch.tensor(numbers), classes=classes, named=True), notes


def _without_classes(paths: Sequence[bytes], folders: Sequence[bytes], kinds: set[bytes]) -> str:
    if kinds == {b""}:
        return "its pictures lie in no class folders"
    if b"" in kinds:
        loose = os.fsdecode(paths[folders.index(b"")])
        return f"{folders.count(b''):,} of its pictures lie in no class folder, as {loose}"
    return f"all its pictures lie in one folder, {_listed(kinds)}" if kinds else "nothing names any"


def _listed(folders: Sequence[bytes] | set[bytes]) -> str:
    return " and ".join(f"{folder.decode(errors='replace')}/" for folder in sorted(folders))


def _counted(folders: Counter[bytes]) -> str:
    """Folders with the number of their pictures; those that lie in none are named so."""
    named = sorted(
        (f"{top.decode(errors='replace')}/" if top else "loose pictures", count) for top, count in folders.items()
    )
    return ", ".join(f"{name} ({count:,})" for name, count in named)


def refuse_empty_train(folders: Sequence[bytes], paths: Sequence[bytes], place: object) -> None:
    """Raises UserError where a folder is called train but pictures lie in test folders alone."""
    train = next((top for top in sorted(folders) if top and b"/" not in top and _TRAIN.match(os.fsdecode(top))), None)
    if train is None or any(path.startswith(train + b"/") for path in paths):
        return
    if all(_TEST.match(os.fsdecode(path.partition(b"/")[0])) for path in paths):
        raise UserError(f"{place}/{os.fsdecode(train)} holds no pictures")
