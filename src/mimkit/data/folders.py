"""Picture files: a folder, walked once and remembered, enters, Pictures leave."""

import errno
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from mimkit.core.errors import UserError
from mimkit.core.files import open_regular, read_regular
from mimkit.data.dicom import START, is_dicom
from mimkit.data.encoded import Encoded
from mimkit.data.layout import arrange, refuse_empty_train
from mimkit.data.pictures import Pictures, Split, digest, sample
from mimkit.data.reading import Reading
from mimkit.data.tables import labeled_layout

_KINDS = "jpg jpeg jpe jfif mpo png webp avif bmp gif tif tiff ppm pgm pbm pnm jp2 dcm dicom"
ENDINGS = frozenset(f".{kind}" for kind in _KINDS.split())
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

    def __init__(self, name: str, root: Path, paths: Paths, *, reading: Reading, has_test: bool = False) -> None:
        self.name, self._root, self._paths = name, os.fsencode(root), paths
        self.reading, self.has_test = reading, has_test

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def root(self) -> Path:
        """The folder that paths are relative to."""
        return Path(os.fsdecode(self._root))

    @property
    def paths(self) -> Paths:
        """All of them, relative to it."""
        return self._paths

    def path(self, i: int) -> bytes:
        return os.path.join(self._root, self._paths[i])

    def data(self, i: int) -> bytes:
        return read_regular(self.path(i))

    def file(self, i: int) -> BufferedIOBase:
        return open_regular(self.path(i))

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

    def __init__(
        self,
        pictures: Paths,
        folders: Paths,
        changed: np.ndarray,
        other_files: Counter[str],
        skipped: tuple[str, ...] = (),
    ) -> None:
        self.pictures, self.folders, self.changed, self.other_files = pictures, folders, changed, other_files
        self.skipped = skipped  # a line for each kind of thing that was not taken

    def current(self, root: bytes) -> bool:
        """Whether every directory is as it was: adding, removing or renaming a file changes its directory."""
        try:
            times = [os.stat(os.path.join(root, folder)).st_mtime_ns for folder in self.folders]
        except OSError:
            return False
        return times == self.changed.tolist()


class _Walk:
    """A walk through a folder: `pictures`, `folders` and so on grow while `visit` goes from folder to folder."""

    def __init__(self, root: bytes, endings: frozenset[bytes]) -> None:
        self.root, self.endings = root, endings
        self.pictures: list[bytes] = []
        self.folders: list[bytes] = []
        self.changed: list[int] = []
        self.other_files: Counter[str] = Counter()
        self.skipped: dict[str, list[bytes]] = {}

    def visit(self, folder: bytes, above: frozenset[tuple[int, int]]) -> tuple[Iterator[os.DirEntry], frozenset]:
        """What lies in a folder, in order, and the folders that hold it, itself among them. Raises OSError."""
        status = os.stat(os.path.join(self.root, folder))
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise OSError(errno.ELOOP, "a link back to a folder above it")
        self.folders.append(folder)
        self.changed.append(status.st_mtime_ns)
        # scandir knows from the directory itself what is a folder: no call for each of a million files.
        with os.scandir(os.path.join(self.root, folder)) as listing:
            return iter(sorted(listing, key=lambda entry: entry.name)), above | {here}

    def all(self) -> None:
        """Visit everything. Raises OSError when the root itself cannot be read."""
        # A stack of our own: folders may be nested deeper than Python's calls.
        stack = [(b"", *self.visit(b"", frozenset()))]
        while stack:
            folder, entries, above = stack[-1]
            entry = next(entries, None)
            if entry is None:
                stack.pop()
            elif not entry.name.startswith(b"."):
                path = os.path.join(folder, entry.name)
                try:
                    if entry.is_dir():
                        stack.append((path, *self.visit(path, above)))
                    else:
                        self.take(entry, path)
                except FileNotFoundError:  # went away meanwhile
                    continue
                except OSError as error:
                    self.skip(_REASONS.get(error.errno or 0, error.strerror or "cannot be read"), path)

    def take(self, entry: os.DirEntry, path: bytes) -> None:
        """Note a file."""
        ending = os.path.splitext(entry.name)[1].lower()
        if ending not in self.endings and not self.unnamed_dicom(entry, ending):
            self.other_files[os.fsdecode(ending) or "no ending"] += 1
        elif entry.is_file() or not os.path.exists(os.path.join(self.root, path)):  # a link that leads nowhere is bad
            self.pictures.append(path)
        else:
            self.skip("no regular files", path)

    def unnamed_dicom(self, entry: os.DirEntry, ending: bytes) -> bool:
        """Whether a file is DICOM by its first bytes. Scanners name files by numbers alone, without an ending."""
        if (ending and not ending[1:].isdigit()) or entry.name == b"DICOMDIR" or not entry.is_file():
            return False
        with open_regular(entry.path) as file:
            return is_dicom(file.read(START))

    def skip(self, reason: str, path: bytes) -> None:
        """Note what is not taken."""
        self.skipped.setdefault(reason, []).append(path)
        self.other_files[reason] += 1


_HOLDERS = (".zip", ".tar", ".csv", ".jsonl")  # files that are data by themselves
_LASTING = ("no ending", "no regular files", "links in a loop", "paths that are too long")
_ENDINGS = frozenset(ending.encode() for ending in ENDINGS)
_REASONS = {
    errno.EACCES: "no permission",
    errno.ELOOP: "links in a loop",
    errno.ENAMETOOLONG: "paths that are too long",
}


def walk(root: bytes, more: frozenset[bytes] = frozenset()) -> Index:
    """Every picture below `root`, by file ending alone; hidden names left out, links followed; files of `more` too.

    Only files without an ending are opened: those that begin as DICOM files are pictures as well.

    What is no regular file, links in a loop and paths that cannot be followed are skipped, and counted in `skipped`.
    """
    steps = _Walk(root, _ENDINGS | more)
    steps.all()
    skipped = tuple(
        f"skipped, {reason}: {len(paths):,}, as {paths[0][:200].decode(errors='replace')}"
        for reason, paths in steps.skipped.items()
    )
    changed = np.array(steps.changed, np.int64)
    return Index(Paths.pack(steps.pictures), Paths.pack(steps.folders), changed, steps.other_files, skipped)


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
                tuple(archive["skipped"].tolist()),
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
    # What could not be read may be mended without a change of any folder.
    if not len(listing.pictures) or not all(kind in _LASTING or kind[0] == "." for kind in listing.other_files):
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
                    skipped=np.array(listing.skipped, str),
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
    """The pictures below a folder: flat, nested, class folders, or any of these under train/ and val/; see `arrange`.

    Labels of `metadata.csv`, `.jsonl` or `.parquet` there, as Hugging Face has it, come before class folders. Raises
    UserError.
    """
    listing = index(folder)
    if not len(listing.pictures):
        raise UserError(_nothing(folder, listing.other_files or walk(os.fsencode(folder)).other_files))
    paths = list(listing.pictures)
    refuse_empty_train(list(listing.folders), paths, folder)
    layout = arrange(paths)

    def read(path: bytes) -> bytes | None:
        place = os.path.join(os.fsencode(folder), path)
        return read_regular(place) if os.path.isfile(place) else None

    layout, notes = labeled_layout(layout, paths, read, reading, folder)
    numbers, top, labels = layout.of(split)
    whole = len(numbers) == len(paths) and not top
    names = listing.pictures if whole else Paths.pack([paths[number][len(top) :] for number in numbers])
    root = os.fsdecode(os.path.join(os.path.abspath(os.fsencode(folder)), top).rstrip(b"/"))
    pictures = Files(str(folder), Path(root), names, reading=reading, has_test=bool(layout.test))
    pictures.set_labels(labels)
    pictures.notes = (*layout.notes, *notes, *listing.skipped)
    return pictures


def _nothing(folder: Path, other_files: Counter[str]) -> str:
    if not other_files:
        return f"{folder} is empty: give a folder that holds pictures"
    endings = ", ".join(ending for ending, _ in other_files.most_common(5))
    readable = " ".join(sorted(ENDINGS))
    contents = f"{other_files.total():,} files, none of them pictures: {endings}"
    hint = ""
    if holders := [ending for ending in _HOLDERS if ending in other_files]:
        hint = f"; of {' '.join(holders)} name the files themselves"
    return f"{folder} holds {contents}{hint}; readable endings: {readable}"
