"""Pictures in shards: an index enters, a set whose pictures are read by shard, offset and size leaves."""

import glob
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from mimkit.core.errors import UserError
from mimkit.data.classes import Labels
from mimkit.data.encoded import Encoded
from mimkit.data.folders import cache_folder
from mimkit.data.pictures import Split, digest, first_few
from mimkit.data.reading import Reading
from mimkit.data.shards.index import ENDING, Index, open_index, probe, write_index
from mimkit.data.shards.others import index_tars
from mimkit.data.stored import LocalFile, StoredFile, open_stored

NAME = f"shards{ENDING}"
"""What an index is called, beside its shards."""
_OPEN = 256  # shards on disks that a process holds open
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_WILD = re.compile(r"[*?\[{]")


class Shards(Encoded):
    """Pictures `first .. end - 1` of an index."""

    def __init__(self, name: str, index: Index, first: int, end: int, reading: Reading) -> None:
        self.name, self._index, self._first, self._end, self.reading = name, index, first, end, reading
        self._opened: dict[int, StoredFile] = {}
        self.has_test = index.about.train < len(index)
        about = index.about
        self.remote = any("://" in index.place(number) for number in range(len(about.shards)))
        labels = index.labels(first, end)
        self.set_labels(Labels(numbers=labels, classes=about.classes, named=about.named, reason=about.no_labels))

    def __getstate__(self) -> dict:  # a process that is sent this maps the labels and opens the shards itself
        return self.__dict__ | {"_opened": {}, "labels": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self.classes is not None:
            self.labels = self._index.labels(self._first, self._end)

    def __len__(self) -> int:
        return self._end - self._first

    def data(self, i: int) -> bytes:
        rows, row = self._index.rows, self._first + i
        data = self._shard(int(rows.shard[row])).read(int(rows.offset[row]), int(rows.size[row]))
        if len(rows.checksum) and zlib.crc32(data) != rows.checksum[row]:
            raise OSError(0, "damaged in the shard")
        return data

    def where(self, i: int) -> str:
        row = self._first + i
        return f"{self._index.place(int(self._index.rows.shard[row]))}/{os.fsdecode(self._index.rows.names[row])}"

    @property
    def fingerprint(self) -> str:
        """That of the index, so that it is the same wherever the shards lie."""
        return digest(self._index.about.fingerprint, self._first, self._end)

    def _shard(self, number: int) -> StoredFile:
        file = self._opened.get(number)
        if file is None:
            file = open_shard(self._index, number)
            for oldest in list(self._opened)[: 0 if self.remote else len(self._opened) - _OPEN + 1]:
                self._opened.pop(oldest, None)
            self._opened[number] = file
        return file


def open_shard(index: Index, number: int) -> StoredFile:
    """A shard of an index. Raises UserError, by name, where it is not the file that was indexed."""
    shard, place = index.about.shards[number], index.place(number)
    try:
        file = open_stored(place)
        if file.size != shard.size:
            raise _changed(place, f"has {file.size:,} bytes instead of {shard.size:,}")
        # Another version is a copy, or something else. In a store each look costs a block; checksums tell it as well.
        near = isinstance(file, LocalFile) or not len(index.rows.checksum)
        if file.version != shard.version and near and probe(file, shard.probe) != shard.digest:
            raise _changed(place, "holds something else")
    except OSError as error:
        raise UserError(
            f"cannot read the shard {place} ({error.strerror or error}): copy it again, or make the index anew with "
            "'mimkit shards index'"
        ) from None
    return file


def _changed(place: str, difference: str) -> UserError:
    return UserError(
        f"{place} is not the shard that was indexed: it {difference}; copy it again, or make the index anew with "
        "'mimkit shards index'"
    )


def open_shards(place: str, split: Split, reading: Reading) -> Shards:
    """A set in shards: an index, a folder that holds one, or tar files that are indexed into the cache (see `find`).

    Raises UserError.
    """
    if reading.label_column is not None:
        raise UserError(
            f"the labels of {place} stand in its index: 'mimkit shards index ... --label-column "
            f"{reading.label_column}' makes one with others"
        )
    file = index_file(place)
    index = open_index(file) if file is not None else _index_into_cache(place)
    about = index.about
    tested = about.train < len(index)
    first, end = (about.train, len(index)) if split == "test" and tested else (0, about.train)
    if first == end:
        raise UserError(f"{place} holds no pictures")
    pictures = Shards(place, index, first, end, reading)
    pictures.notes = about.notes
    return pictures


def are_shards(place: str) -> bool:
    """Whether a place of --data is an index, a folder with one, or a pattern of tar files.

    Raises UserError for a folder of several indexes.
    """
    pattern = place.endswith(".tar") and (_BRACES if "://" in place else _WILD).search(place) is not None
    return index_file(place) is not None or (pattern and not Path(place).expanduser().exists())


def index_file(place: str) -> str | None:
    """The index that a place is or holds, None where there is none. Raises UserError where there are several."""
    if place.endswith(ENDING):
        return place
    path = Path(place).expanduser()
    if "://" in place or not path.is_dir():  # in a store, an index is named itself
        return None
    try:
        with os.scandir(path) as listing:
            files = sorted(entry.path for entry in listing if entry.name.endswith(ENDING) and entry.name[0] != ".")
    except PermissionError:  # of which the walk through the folder says more
        return None
    if len(files) > 1:
        raise UserError(f"{place} holds several indexes: name one, as {files[0]}")
    return files[0] if files else None


def tars_below(folder: Path) -> list[Path]:
    """The tar files below a folder that holds no other kind of file that one would name as data."""
    files = [file for file in sorted(folder.rglob("*.tar")) if file.is_file()]
    return [file for file in files if not any(part[0] == "." for part in file.relative_to(folder).parts)]


def find(places: Sequence[str]) -> list[str]:
    """The tar files that words name: files and URLs, folders, globs and ranges as `train-{0000..0146}.tar`.

    Raises UserError where a word names none.
    """
    files: list[str] = []
    for place in places:
        for word in expanded(place):
            files += _matching(word)
    if twice := [name for name, count in Counter(files).items() if count > 1]:
        raise UserError(f"{twice[0]} is named twice: name each tar file once")
    return files


def expanded(word: str) -> Iterator[str]:
    """The words that braces stand for: `a{08..10}` for a08, a09 and a10, `{a,b}` for a and b."""
    pieces, choices, last = [], [], 0
    for match in _BRACES.finditer(word):
        pieces.append(word[last : match.start()])
        last = match.end()
        if match[1] is None:
            choices.append(match[3].split(","))
        else:
            first, end, width = int(match[1]), int(match[2]), len(match[1])
            choices.append([f"{number:0{width}}" for number in range(first, end + 1)])
    for values in product(*choices):
        yield "".join(piece + value for piece, value in zip(pieces, values, strict=True)) + word[last:]


def _matching(word: str) -> list[str]:
    """The tar files of a word without braces."""
    if "://" in word:
        return [word]
    path = Path(word).expanduser()
    if path.is_dir():
        files = [str(file) for file in tars_below(path)]
    else:
        files = [word] if path.exists() else sorted(glob.glob(os.path.expanduser(word)))
    if not files:
        raise UserError(
            f"there is no tar file {word}: name tar files, a folder of them, or a range as 'a-{{00..12}}.tar'"
        )
    return files


def _index_into_cache(place: str) -> Index:
    """An index of tar files that lie without one, made once."""
    files = find([place])
    try:
        versions = [open_stored(file).version for file in files]
    except OSError as error:
        raise UserError(f"cannot read {place}: {error.filename or error}: {error.strerror or ''}") from None
    absolute = [file if "://" in file else os.path.abspath(os.path.expanduser(file)) for file in files]
    cached = cache_folder() / "shards" / f"{digest(absolute, versions)}{ENDING}"
    if not cached.exists():
        about, rows = index_tars(absolute, "", None)
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            write_index(cached, about, rows)
        except OSError as error:
            raise UserError(
                f"cannot keep the index of {first_few(files, 1)} in {cached.parent} ({error.strerror}): write one with "
                f"'mimkit shards index {place} --out FILE{ENDING}'"
            ) from None
    return open_index(str(cached))
