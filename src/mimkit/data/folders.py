"""Picture files: a folder, walked once and remembered, or a list of paths enters, Pictures leave."""

import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mimkit.core.errors import UserError
from mimkit.data.pictures import Encoded, Pictures, Split, digest, sample, split_by_address
from mimkit.data.reading import Reading

_KINDS = "jpg jpeg jpe jfif mpo png webp avif bmp gif tif tiff ppm pgm pbm pnm jp2"
ENDINGS = frozenset(f".{kind}" for kind in _KINDS.split())
_TRAIN = re.compile(r"train(ing)?(\d{4})?$", re.IGNORECASE)
_TEST = re.compile(r"(val|valid|validation|test|testing)(\d{4})?$", re.IGNORECASE)
_TEST_ORDER = ("val", "valid", "validation", "test", "testing")
SETTLED = 2_000_000_000  # ns; a directory changed just now may change again within one tick of its clock


class Paths:
    """Many paths as one buffer of bytes: workers would copy a million strings by counting references."""

    def __init__(self, buffer: np.ndarray, ends: np.ndarray) -> None:
        self.buffer, self.ends = buffer, ends

    @staticmethod
    def pack(paths: list[bytes]) -> "Paths":
        """The paths end to end, and where each ends."""
        # int64: the paths of a set of many millions are more than 2^31 bytes.
        ends = np.cumsum(np.fromiter((len(path) for path in paths), np.int64, len(paths)))
        return Paths(np.frombuffer(b"".join(paths), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> bytes:
        return self.buffer[self.ends[i - 1] if i else 0 : self.ends[i]].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        data, start = self.buffer.tobytes(), 0
        for end in self.ends.tolist():
            yield data[start:end]
            start = end


class Files(Encoded):
    """Picture files, by paths relative to `root`."""

    def __init__(
        self,
        name: str,
        root: Path,
        paths: Paths,
        *,
        reading: Reading,
        classes: tuple[str, ...] | None = None,
        labels: Tensor | None = None,
        has_test: bool = False,
    ) -> None:
        self.name, self._root, self._paths = name, os.fsencode(root), paths
        self.reading = reading
        self.classes, self.labels, self.has_test = classes, labels, has_test

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, i: int) -> bytes:
        return os.path.join(self._root, self._paths[i])

    def data(self, i: int) -> bytes:
        with open(self.path(i), "rb", buffering=0) as file:
            return file.read()

    def file(self, i: int) -> BufferedIOBase:
        return open(os.fsdecode(self.path(i)), "rb")

    def where(self, i: int) -> str:
        return os.fsdecode(self.path(i))

    @property
    def fingerprint(self) -> str:
        """From the names, and size and time of 200 of the files; other files that come and go do not matter."""
        few = []
        for i in sample(len(self), 200):
            try:
                status = os.stat(self.path(i))
                few.append((status.st_size, status.st_mtime_ns))
            except OSError:
                few.append((-1, -1))
        return digest(self._paths.buffer.tobytes(), self._paths.ends.tobytes(), few)


class Index:
    """What lies in a folder: pictures in sorted order, and every directory with its time of change."""

    def __init__(self, pictures: Paths, folders: Paths, changed: np.ndarray, other_files: Counter[str]) -> None:
        self.pictures, self.folders, self.changed, self.other_files = pictures, folders, changed, other_files

    def current(self, root: bytes) -> bool:
        """Whether every directory is as it was: adding, removing or renaming a file changes its directory."""
        try:
            times = [os.stat(os.path.join(root, folder)).st_mtime_ns for folder in self.folders]
        except OSError:
            return False
        return times == self.changed.tolist()


def walk(root: bytes) -> Index:
    """Every picture below `root`, by file ending alone, no file opened; hidden names left out, links followed."""
    pictures: list[bytes] = []
    folders: list[bytes] = []
    changed: list[int] = []
    other_files: Counter[str] = Counter()
    endings = {ending.encode() for ending in ENDINGS}

    def visit(folder: bytes, above: frozenset[tuple[int, int]]) -> None:
        status = os.stat(os.path.join(root, folder))
        here = (status.st_dev, status.st_ino)
        if here in above:  # a link back to a folder that holds this one
            return
        folders.append(folder)
        changed.append(status.st_mtime_ns)
        inner = above | {here}
        # scandir knows from the directory itself what is a folder: no call for each of a million files.
        with os.scandir(os.path.join(root, folder)) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            path = os.path.join(folder, entry.name)
            try:
                if entry.is_dir():
                    visit(path, inner)
                elif (ending := os.path.splitext(entry.name)[1].lower()) in endings:
                    pictures.append(path)
                else:
                    other_files[os.fsdecode(ending) or "no ending"] += 1
            except PermissionError:
                other_files["no permission"] += 1
            except FileNotFoundError:  # went away meanwhile
                continue

    visit(b"", frozenset())
    return Index(Paths.pack(pictures), Paths.pack(folders), np.array(changed, np.int64), other_files)


def index(folder: Path) -> Index:
    """The index of a folder, from `~/.cache/mimkit/index` while no directory in it has changed."""
    root = os.path.abspath(folder)
    cached = cache_folder() / "index" / f"{digest(root)}.npz"
    encoded = os.fsencode(root)
    try:
        with np.load(cached, allow_pickle=False) as archive:
            listing = Index(
                Paths(archive["pictures"], archive["picture_ends"]),
                Paths(archive["folders"], archive["folder_ends"]),
                archive["changed"],
                Counter(),
            )
        if listing.current(encoded):
            return listing
    except Exception:  # no cache, or one that is damaged: walk
        pass
    try:
        listing = walk(encoded)
    except PermissionError:
        raise UserError(f"cannot read {folder}: permission denied") from None
    _keep(cached, listing)
    return listing


def _keep(cached: Path, listing: Index) -> None:
    """Write the index beside and rename; a cache that cannot be written is no error."""
    if not len(listing.pictures):
        return
    if listing.changed.max() > time.time_ns() - SETTLED:  # a file that comes within the same tick would never be seen
        return
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        # Beside the cache, so that the rename is within one file system and no reader meets half a file.
        with tempfile.NamedTemporaryFile(dir=cached.parent, suffix=".part", delete=False) as file:
            try:
                np.savez(
                    file,
                    pictures=listing.pictures.buffer,
                    picture_ends=listing.pictures.ends,
                    folders=listing.folders.buffer,
                    folder_ends=listing.folders.ends,
                    changed=listing.changed,
                )
                file.close()
                os.replace(file.name, cached)
            except OSError:
                os.unlink(file.name)
    except OSError:
        pass


def cache_folder() -> Path:
    """Where mimkit keeps what it can make again: $XDG_CACHE_HOME/mimkit or ~/.cache/mimkit."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mimkit"


def open_folder(folder: Path, split: Split, reading: Reading) -> Pictures:
    """The pictures below a folder: flat, nested, class folders, or any of these under train/ and val/."""
    listing = index(folder)
    if not len(listing.pictures):
        raise UserError(_nothing(folder, listing.other_files or walk(os.fsencode(folder)).other_files))
    tops = {path.split(b"/", 1)[0] for path in listing.folders if path}
    train = next((top for top in sorted(tops) if _TRAIN.match(os.fsdecode(top))), None)
    tests = [top for top in tops if _TEST.match(os.fsdecode(top))]
    # Of several (val and test) the one for choosing settings comes first: what is called test is for the end.
    test = min(tests, key=lambda top: _TEST_ORDER.index(os.fsdecode(top).lower().rstrip("0123456789")), default=None)
    if train is None:
        pictures = _files(str(folder), folder, listing.pictures, None, reading)
        return split_by_address(pictures, split)
    by_split = {top: [path for path in listing.pictures if path.startswith(top + b"/")] for top in (train, test) if top}
    if not by_split[train]:
        raise UserError(f"{folder / os.fsdecode(train)} holds no pictures")
    # Classes of both splits together, so that a class without test pictures leaves the numbers of the others alone.
    names = _classes([path.split(b"/", 1)[1] for paths in by_split.values() for path in paths])
    has_test = bool(test and by_split[test])
    source = test if split == "test" and has_test else train
    assert source is not None
    paths = Paths.pack([path.split(b"/", 1)[1] for path in by_split[source]])
    root = folder / os.fsdecode(source)
    pictures = _files(str(folder), root, paths, names, reading, has_test)
    return pictures if has_test else split_by_address(pictures, split)


def _files(
    name: str,
    root: Path,
    paths: Paths,
    names: tuple[str, ...] | None,
    reading: Reading,
    has_test: bool = False,
) -> Files:
    listed = list(paths)
    # Given names hold for both splits; without them each folder speaks for itself.
    classes = names if names and all(b"/" in path for path in listed) else _classes(listed)
    labels = None
    if classes:
        number = {os.fsencode(name): i for i, name in enumerate(classes)}
        # Names are compared as bytes: those of files need not be valid text.
        labels = torch.tensor([number[path.split(b"/", 1)[0]] for path in listed])
    return Files(
        name,
        Path(os.path.abspath(root)),
        paths,
        reading=reading,
        classes=classes,
        labels=labels,
        has_test=has_test,
    )


def _classes(paths: list[bytes]) -> tuple[str, ...] | None:
    """The first directories, when every picture lies in one and there are at least two."""
    if not all(b"/" in path for path in paths):
        return None
    names = sorted({path.split(b"/", 1)[0] for path in paths})
    return tuple(os.fsdecode(name) for name in names) if len(names) > 1 else None


def _nothing(folder: Path, other_files: Counter[str]) -> str:
    if not other_files:
        return f"{folder} is empty: give a folder that holds pictures"
    endings = ", ".join(ending for ending, _ in other_files.most_common(5))
    readable = " ".join(sorted(ENDINGS))
    contents = f"{other_files.total():,} files, none of them pictures: {endings}"
    return f"{folder} holds {contents}; readable endings: {readable}"


def open_list(file: Path, split: Split, reading: Reading) -> Pictures:
    """A text file with one path a line, relative to the file's folder, optionally a tab and a label."""
    paths: list[bytes] = []
    names: list[str] = []
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="surrogateescape").splitlines(), 1):
        if not line.strip():
            continue
        path, tab, label = line.partition("\t")
        if bool(tab) != bool(names) and paths:
            raise UserError(f"{file} line {number}: either every line has a tab and a label or none has")
        paths.append(os.fsencode(path.strip()))
        names += [label.strip()] if tab else []
    if not paths:
        raise UserError(f"{file} is empty: write one path of a picture a line, relative to {file.parent}")
    # Absolute, since workers and later commands may stand in another folder; links are kept as they are named.
    root = Path(os.path.abspath(file.parent))
    if not os.path.exists(os.path.join(os.fsencode(root), paths[0])):
        first = os.fsdecode(paths[0])
        raise UserError(f"{file} line 1: there is no file {first} (paths are relative to {root})")
    # Numbers before words and by their value: 2 comes before 10.
    classes = sorted(set(names), key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
    number_of = {name: i for i, name in enumerate(classes)}
    pictures = Files(
        str(file),
        root,
        Paths.pack(paths),
        reading=reading,
        classes=tuple(classes) or None,
        labels=torch.tensor([number_of[name] for name in names]) if names else None,
    )
    return split_by_address(pictures, split)
