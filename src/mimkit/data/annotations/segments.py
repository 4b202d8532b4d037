"""Classes of pixels: pictures and maps of numbers or colors enter; an annotated set leaves, its classes from 0."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mimkit.core.annotation import VOID, Annotation
from mimkit.core.errors import UserError
from mimkit.data.annotations import maps
from mimkit.data.annotations.annotated import Annotated
from mimkit.data.annotations.maps import Census, census
from mimkit.data.annotations.mended import leave_out
from mimkit.data.annotations.names import UNNAMED, Names
from mimkit.data.annotations.pairs import Pairs
from mimkit.data.folders import Files
from mimkit.data.header import BadPicture
from mimkit.data.pictures import digest, first_few
from mimkit.data.reading import Reading

ALWAYS_VOID = 255
MOST = 1000  # numbers of classes in a set: with more, the maps hold instances or depths


@dataclass(frozen=True)
class Legend:
    """Which stored values are which class."""

    values: np.ndarray
    """Rising; colors packed."""
    classes: np.ndarray
    """Of each value; VOID."""
    names: tuple[str, ...]
    """Of the classes."""
    color: bool = False

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        """Classes (H, W) int16 of the stored values of a map. Raises BadPicture for a value that is none of these."""
        if stored.ndim == 3:
            stored = maps.packed(stored) if self.color else stored[:, :, 0]
        places = np.searchsorted(self.values, stored).clip(max=len(self.values) - 1)
        if stored.dtype.kind == "f" or (self.values[places] != stored).any():
            raise BadPicture("holds a class that the set did not have when it was opened")
        return self.classes[places]

    @property
    def fingerprint(self) -> str:
        """Changes when the classes do."""
        return digest(self.values.tobytes(), self.classes.tobytes(), self.names)


class Segmented(Annotated):
    """Pictures with the class of each pixel."""

    task = "segment"

    def __init__(self, pictures: Files, files: Files, legend: Legend, pixels: np.ndarray) -> None:
        """`files`: the map of each; `pixels`: of each class in all of them, and behind them void ones."""
        super().__init__(pictures)
        self._files, self._legend, self.categories = files, legend, legend.names
        self.pixels = pixels

    def annotation(self, i: int) -> Annotation:
        size = self.size(i)
        classes = self._legend(maps.read_values(self._files.path(i)))
        segments = torch.from_numpy(np.ascontiguousarray(maps.resized(classes, size)))
        return Annotation(size=size, segments=segments)

    @property
    def annotations_fingerprint(self) -> str:
        return digest(self._files.fingerprint, self._legend.fingerprint)


def open_segments(
    pairs: Pairs,
    reading: Reading,
    names: Names | None,
    bad_fraction: float,
    *,
    void: frozenset[int] = frozenset(),
    named: int | None = None,
    every: int | None = None,
) -> tuple[Segmented, Segmented]:
    """Both splits of a set of pairs.

    Args:
        void: numbers of pixels without a class, besides 255.
        named: which of them a person named, who may be mistaken.
        every: the classes are 1 to `every` (ADE20K), also those that no map holds.

    Raises UserError.
    """
    counted = census(pairs.files(range(len(pairs.images))))
    pairs = leave_out(pairs, counted.bad, counted.reasons.tolist(), "masks cannot be read", bad_fraction)
    if counted.bad:
        counted = census(pairs.files(range(len(pairs.images))))
    files = pairs.files(range(len(pairs.images)))
    if named is not None and named != ALWAYS_VOID and maps.COLOR not in counted.kinds and named not in counted.values:
        numbers = first_few([str(value) for value in np.unique(counted.values).tolist()], 12)
        raise UserError(f"no mask holds {named}, which --void says: they hold {numbers}")
    legend, notes = legend_of(counted, files, names, void, every)
    pictures = pairs.pictures(range(len(pairs.images)), reading)
    notes += maps.check_sizes(maps.header_sizes(pictures), counted.sizes, files, "masks")

    def split(numbers: Sequence[int], as_read: Reading) -> Segmented:
        pixels = _pixels(legend, counted, numbers)
        return Segmented(pairs.pictures(numbers, as_read), pairs.files(numbers), legend, pixels)

    train = split(pairs.train, reading)
    test = split(pairs.test, train.whole.resolved)
    train.notes += notes
    return train, test


def _pixels(legend: Legend, counted: Census, numbers: Sequence[int]) -> np.ndarray:
    """(K + 1) pixels of each class in some files, and of void."""
    owners = np.repeat(np.arange(len(counted.ends)), np.diff(counted.ends, prepend=0))
    here = np.isin(owners, numbers)
    classes = legend.classes[np.searchsorted(legend.values, counted.values[here])].astype(np.int64)
    weights = np.bincount(classes % (len(legend.names) + 1), counted.pixels[here], minlength=len(legend.names) + 1)
    return weights.astype(np.int64)


def legend_of(
    counted: Census, files: Files, names: Names | None, void: frozenset[int], every: int | None = None
) -> tuple[Legend, tuple[str, ...]]:
    """Which values are which class, by what all maps hold and a file of names; and lines about it.

    Without names the classes are the values that occur. Raises UserError.
    """
    kinds, values = set(counted.kinds.tolist()), np.unique(counted.values).tolist()
    if maps.COLOR in kinds:
        if maps.INDEX in kinds:
            both = [files.where(int(np.flatnonzero(counted.kinds == kind)[0])) for kind in (maps.INDEX, maps.COLOR)]
            raise UserError(f"some masks hold numbers ({both[0]}) and some colors ({both[1]}): make them alike")
        return _of_colors(values, counted, files, names, void)
    if len(values) > MOST:
        raise UserError(
            f"the masks hold {len(values):,} different numbers, as {files.where(0)}: more than {MOST:,} are no classes"
        )
    notes = ("masks are colors that are all gray: taken for numbers",) if maps.GRAY in kinds else ()
    void_ids = {ALWAYS_VOID, *void}
    if names is not None:
        by_id = names.of_ids(0 in void_ids)
        void_ids |= {number for number, name in by_id.items() if name.lower() in UNNAMED}
        ids = sorted(by_id.keys() - void_ids)
        listed = tuple(by_id[number] for number in ids)
        source = f"the classes of {names.file}"
    else:
        ids = list(range(1, every + 1)) if every else [value for value in values if value not in void_ids]
        listed = tuple(f"class {number}" for number in ids)
        source = f"1 to {every}" if every else ""
    strange = [value for value in values if value not in void_ids and value not in ids]
    if strange:
        file = files.where(counted.file_of(strange[0]))
        raise UserError(
            f"{file} holds the class {strange[0]}, which is none of {source}: name it there, or give --void "
            f"{strange[0]} if its pixels have no class"
        )
    if not ids:
        raise UserError("the masks hold no class: all their pixels are void")
    table = {number: place for place, number in enumerate(ids)} | dict.fromkeys(void_ids, VOID)
    return _legend(table, listed, False), notes


def _of_colors(
    values: list[int], counted: Census, files: Files, names: Names | None, void: frozenset[int]
) -> tuple[Legend, tuple[str, ...]]:
    if void:
        raise UserError("--void is a number, and the masks are colors: name the color void in label_colors.txt")
    if len(values) > maps.COLORS:
        first = files.where(int(np.flatnonzero(counted.kinds == maps.COLOR)[0]))
        raise UserError(
            f"the masks hold {len(values):,} colors, as {first}: more than {maps.COLORS} are no classes; save masks "
            "without blurring, as PNG"
        )
    by_color = names.by_color if names is not None else {}
    if by_color:
        strange = [value for value in values if value not in by_color]
        if strange:
            file, shade = files.where(counted.file_of(strange[0])), f"#{strange[0]:06x}"
            raise UserError(f"{file} holds the color {shade}, which {names.file if names else ''} does not name")
        ids = [value for value in by_color if by_color[value].lower() not in UNNAMED]
        listed = tuple(by_color[value] for value in ids)
        table = dict.fromkeys(by_color, VOID) | {value: place for place, value in enumerate(ids)}
        return _legend(table, listed, True), ()
    listed = tuple(f"#{value:06x}" for value in values)
    if names is not None and len(names.listed) == len(values):
        raise UserError(f"{names.file} does not say which color has which name: write R G B NAME a line")
    table = {value: place for place, value in enumerate(values)}
    return _legend(table, listed, True), (f"masks are colors: {len(values)} are the classes, as {first_few(listed)}",)


def _legend(table: dict[int, int], names: tuple[str, ...], color: bool) -> Legend:
    values = np.array(sorted(table), np.int64)
    return Legend(values, np.array([table[value] for value in values.tolist()], np.int16), names, color)


def name_folders(pairs: Pairs) -> list[Path]:
    """Where files of names are looked for: with the masks, and with what holds pictures and masks."""
    shared = os.path.commonpath([os.path.dirname(path) or b"." for path in pairs.labels])
    folders = [pairs.label_root / os.fsdecode(shared), pairs.label_root, pairs.image_root]
    if pairs.label_root != pairs.image_root and pairs.label_root.parent == pairs.image_root.parent:
        folders.append(pairs.label_root.parent)
    return list(dict.fromkeys(folders))
