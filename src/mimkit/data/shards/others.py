"""Tar files that others made: they enter; the columns of an index of their pictures, with labels and splits, leave.

Members of one stem, the name up to its first dot, are a sample, as WebDataset has it: a picture and what is said of
it.
"""

import json
import os
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from mimkit.core.errors import UserError
from mimkit.data.classes import COLUMNS, UNLABELED, Labels, label_column, number_texts, number_values
from mimkit.data.folders import ENDINGS, Paths
from mimkit.data.layout import Layout, arrange
from mimkit.data.shards.index import About, Rows, Shard, probe
from mimkit.data.shards.tar import BLOCK, Member, Window, members
from mimkit.data.stored import StoredFile, open_stored
from mimkit.data.stream import stream

_CLASS = "cls"
_LARGEST_NOTE = 1 << 22  # bytes of a JSON file that can say what a picture shows
_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SPLITS["testing"] = "test"


@dataclass
class Indexed:
    """The pictures of one tar file, in order."""

    shard: Shard
    column: str | None = None
    """Of labels in JSON, as a person named it."""
    names: list[bytes] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: dict[str, list[Any]] = field(default_factory=dict)
    """By column: what a sample says of its picture, None where it says nothing."""
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, bytes] = field(default_factory=dict)

    def skip(self, reason: str, name: bytes) -> None:
        """Count what is not taken."""
        self.skipped[reason] += 1
        self.examples.setdefault(reason, name)


def index_tars(places: Sequence[str], folder: str, column: str | None, workers: int = 0) -> tuple[About, Rows]:
    """What an index of tar files holds.

    Args:
        places: paths or URLs, in the order that the pictures shall have.
        folder: what names of shards are relative to, where they lie below it.
        column: of the labels in JSON, as a person named it.
        workers: processes that read headers.

    Labels are those of `.cls` or `.json` members, else of class folders in the names. Splits are those of folders in
    the names, or of words in the names of the tar files. Raises UserError.
    """
    indexed = list(stream(_Walk(tuple(places), folder, column), len(places), workers))
    paths = [path for tar in _virtual_paths(indexed) for path in tar]
    if not paths:
        kinds = sum((tar.skipped for tar in indexed), Counter())
        why = f" ({', '.join(kinds)})" if kinds else ""
        raise UserError(f"{_named(places)} no pictures that can be read{why}")
    layout = arrange(paths)
    labels, notes = _labels(indexed, layout, column, places)
    order = np.array([*layout.train, *layout.test], np.int64)
    names = [name for tar in indexed for name in tar.names]
    counts = [len(tar.names) for tar in indexed]
    numbers = labels.numbers
    rows = Rows(
        shard=np.repeat(np.arange(len(indexed)), counts)[order],
        offset=np.concatenate([np.array(tar.offsets, np.int64) for tar in indexed])[order],
        size=np.concatenate([np.array(tar.sizes, np.int64) for tar in indexed])[order],
        label=np.full(len(order), UNLABELED) if numbers is None else numbers.numpy(),
        checksum=np.empty(0, np.uint32),
        names=Paths.pack([names[number] for number in order.tolist()]),
    )
    about = About(
        shards=tuple(tar.shard for tar in indexed),
        train=len(layout.train),
        classes=labels.classes,
        named=labels.named,
        no_labels=labels.reason,
        notes=(*layout.notes, *notes, *_skipped(indexed)),
    )
    return about, rows


@dataclass(frozen=True)
class _Walk:
    """Number of a tar file -> its pictures. For workers."""

    places: tuple[str, ...]
    folder: str
    column: str | None

    def __call__(self, i: int) -> Indexed:
        place = self.places[i]
        try:
            file = open_stored(place)
            return walk(file, relative(place, self.folder), self.column)
        except OSError as error:
            raise UserError(f"cannot read {place}: {error.strerror or error}") from None


def relative(place: str, folder: str) -> str:
    """The name of a shard in an index that lies in a folder, absolute where it is not below it."""
    if "://" not in place:
        place = os.path.abspath(os.path.expanduser(place))
    below = folder.rstrip("/") + "/"
    return place.removeprefix(below) if folder and place.startswith(below) else place


def walk(file: StoredFile, name: str, column: str | None = None) -> Indexed:
    """The pictures of a tar file with what their samples say. Raises UserError, OSError."""
    indexed = Indexed(Shard(name=name, size=file.size, version=file.version), column)
    window = Window(file)
    regular = (member for member in members(window) if _is_file(member, indexed))
    for _, sample in groupby(regular, key=lambda member: stem(member.name)):
        _take(list(sample), indexed, window)
    headers = [indexed.offsets[number] - BLOCK for number in _spread(len(indexed.offsets))]
    digest = probe(file, tuple(headers))
    indexed.shard = Shard(name, file.size, file.version, tuple(headers), digest)
    return indexed


def stem(name: bytes) -> bytes:
    """The name of a sample: up to the first dot behind the folders."""
    folder, slash, file = name.rpartition(b"/")
    return folder + slash + file.partition(b".")[0]


def clean(name: bytes) -> bytes:
    """The name of a member as a path of a folder has it; empty for what is hidden."""
    path = posixpath.normpath(name.replace(b"\\", b"/")).lstrip(b"/")
    hidden = any(word.startswith(b".") or word == b"__MACOSX" for word in path.split(b"/"))
    return b"" if hidden else path


def _is_file(member: Member, indexed: Indexed) -> bool:
    """Whether a member counts; what is left out and might be a picture is noted."""
    path = clean(member.name)
    if not path or member.folder:
        return False
    if not member.regular and _ending(path) in ENDINGS:
        indexed.skip("no regular files", path)
    return member.regular


def _ending(path: bytes) -> str:
    return posixpath.splitext(path)[1].decode(errors="replace").lower()


def _take(sample: list[Member], indexed: Indexed, window: Window) -> None:
    """Note the first picture of a sample, and what is said of it."""
    pictures = [member for member in sample if _ending(member.name) in ENDINGS]
    if not pictures:
        return
    for further in pictures[1:]:
        indexed.skip("further pictures of a sample", further.name)
    first = pictures[0]
    if first.size > np.iinfo(np.int32).max:
        indexed.skip("larger than 2 GB", first.name)
        return
    before = len(indexed.names)
    indexed.names.append(clean(first.name))
    indexed.offsets.append(first.offset)
    indexed.sizes.append(first.size)
    for member in sample:
        for column, value in _statements(member, window, indexed):
            values = indexed.labels.setdefault(column, [])
            values += [None] * (before - len(values)) + [value]
    for values in indexed.labels.values():
        del values[before + 1 :]  # of two files that say the same the first counts


def _statements(member: Member, window: Window, indexed: Indexed) -> list[tuple[str, Any]]:
    """What a member of a sample says of its picture: columns with values."""
    ending = _ending(member.name)
    if ending not in (f".{_CLASS}", ".json") or member.size > _LARGEST_NOTE:
        return []
    data = window.read(member.offset, member.size)
    if ending == f".{_CLASS}":
        return [(f".{_CLASS}", data.decode("utf-8", "surrogateescape"))]
    try:
        row = json.loads(data)
    except ValueError:
        indexed.skip("no JSON", member.name)
        return []
    # What may be a label alone: captions of millions of pictures would take gigabytes.
    items = row.items() if isinstance(row, dict) else ()
    return [(key, value) for key, value in items if key.lower() in COLUMNS or key == indexed.column]


def _spread(count: int) -> list[int]:
    """The first, the middle and the last of so many."""
    return sorted({0, count // 2, count - 1}) if count else []


def _virtual_paths(indexed: list[Indexed]) -> list[list[bytes]]:
    """Names of the pictures as `arrange` has them: without a folder that holds all, and below the split that the tar
    file is named after."""
    kinds = [_split_of(tar.shard.name) for tar in indexed]
    folders = {posixpath.dirname(name) for tar in indexed for name in tar.names}
    top = posixpath.commonpath(folders) if folders else b""
    paths = [[name[len(top) :].lstrip(b"/") for name in tar.names] for tar in indexed]
    if "train" not in kinds or len({kind for kind in kinds if kind}) < 2:
        return paths
    tops = [kind or posixpath.basename(tar.shard.name) for kind, tar in zip(kinds, indexed, strict=True)]
    return [[os.fsencode(top) + b"/" + path for path in tar] for top, tar in zip(tops, paths, strict=True)]


def _split_of(name: str) -> str | None:
    """The split that a word in the name of a tar file, or of a folder that holds it, names; those behind come first."""
    words = re.split(r"[-_./]", name.lower())
    return next((_SPLITS[word] for word in reversed(words) if word in _SPLITS), None)


def _labels(
    indexed: list[Indexed], layout: Layout, column: str | None, places: Sequence[str]
) -> tuple[Labels, list[str]]:
    """Labels of `layout.train` and behind them of `layout.test`, and what is to be said of them."""
    counts = [len(tar.names) for tar in indexed]
    columns: dict[str, list[Any]] = defaultdict(list)
    for name in dict.fromkeys(name for tar in indexed for name in tar.labels):
        for tar, count in zip(indexed, counts, strict=True):
            values = tar.labels.get(name, [])
            columns[name] += values + [None] * (count - len(values))
    classes = columns.pop(f".{_CLASS}", None)
    order = [*layout.train, *layout.test]
    if classes is not None and column is None:
        return number_texts([classes[number] for number in order]), []
    if column is None and not columns:
        return layout.labels, []
    name, note = label_column(list(columns) or ["no column of labels"], column, _named(places).rpartition(" ")[0])
    assert name is not None
    labels = number_values([columns[name][number] for number in order])
    notes = [note] if note else []
    return labels, notes + ([f"labels are not used: of '{name}', {labels.reason}"] if labels.reason else [])


def _named(places: Sequence[str]) -> str:
    return f"{places[0]} holds" if len(places) == 1 else f"{places[0]} and {len(places) - 1:,} more hold"


def _skipped(indexed: list[Indexed]) -> list[str]:
    """A line for each kind of thing that was not taken."""
    total = sum((tar.skipped for tar in indexed), Counter())
    examples = {reason: name for tar in reversed(indexed) for reason, name in tar.examples.items()}
    return [
        f"skipped, {reason}: {count:,}, as {examples[reason].decode(errors='replace')}"
        for reason, count in total.items()
    ]
