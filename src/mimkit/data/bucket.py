"""Pictures as objects of their own in a store: the URL of a folder, or URLs in a list, enter; Pictures leave."""

import os
import posixpath
from collections import Counter

import numpy as np

from mimkit.core.errors import UserError
from mimkit.core.urls import join
from mimkit.data.blocks import SETTING, bound
from mimkit.data.encoded import Encoded
from mimkit.data.folders import ENDINGS, Paths
from mimkit.data.layout import arrange, refuse_empty_train
from mimkit.data.pictures import Pictures, Split, digest, sample
from mimkit.data.reading import Reading
from mimkit.data.remote import RemoteFile, describe, in_parallel
from mimkit.data.stored import open_stored
from mimkit.data.tables import METADATA, labeled_layout

Listing = dict[str, tuple[int, str]]


class Objects(Encoded):
    """Objects below a URL, of sizes and versions as the store listed them."""

    def __init__(self, name: str, root: str, paths: list[str], files: Listing, reading: Reading) -> None:
        self.name, self._root, self.reading = name, root, reading
        self._paths = Paths.pack([path.encode() for path in paths])
        self._sizes = np.array([files[path][0] for path in paths], np.int64)
        self._versions = Paths.pack([files[path][1].encode() for path in paths])

    def __len__(self) -> int:
        return len(self._paths)

    def data(self, i: int) -> bytes:
        size = int(self._sizes[i])
        return RemoteFile(self.where(i), size, self._versions[i].decode()).read(0, size)

    def where(self, i: int) -> str:
        return join(self._root, self._paths[i].decode())

    @property
    def fingerprint(self) -> str:
        """From the names, sizes and versions of all."""
        columns = (self._paths.buffer, self._paths.ends, self._sizes, self._versions.buffer, self._versions.ends)
        return digest(*(column.tobytes() for column in columns))


class Links(Encoded):
    """Pictures at URLs of which nothing is known before they are read."""

    def __init__(self, name: str, root: str, paths: Paths, reading: Reading) -> None:
        self.name, self._root, self._paths, self.reading = name, root, paths, reading

    def __len__(self) -> int:
        return len(self._paths)

    def data(self, i: int) -> bytes:
        file = open_stored(self.where(i))
        return file.read(0, file.size)

    def where(self, i: int) -> str:
        return join(self._root, os.fsdecode(self._paths[i]))

    @property
    def fingerprint(self) -> str:
        """From the names, and size and version of 64 of the files."""
        few = in_parallel(lambda i: describe(self.where(i)), sample(len(self), 64))
        return digest(self._paths.buffer.tobytes(), self._paths.ends.tobytes(), few)


def open_bucket(url: str, files: Listing, split: Split, reading: Reading) -> Pictures:
    """The pictures below a URL, laid out as `open_folder` has it, with labels of metadata files there.

    `files` are those that the store lists. Raises UserError.
    """
    names = [path for path in files if not any(word.startswith(".") for word in path.split("/"))]
    pictures = [path for path in names if posixpath.splitext(path)[1].lower() in ENDINGS]
    if not pictures:
        raise UserError(f"{url} holds {_contents(names)}: give a folder of pictures, an archive, or Parquet files")
    paths = [path.encode() for path in pictures]
    refuse_empty_train([os.path.dirname(path.encode()) for path in names], paths, url)

    def read(path: bytes) -> bytes | None:
        about = files.get(path.decode())
        return None if about is None else RemoteFile(join(url, path.decode()), *about).read(0, about[0])

    layout, notes = labeled_layout(arrange(paths), paths, read, reading, url)
    numbers, _, labels = layout.of(split)
    opened = Objects(url, url, [pictures[number] for number in numbers], files, reading)
    opened.has_test = bool(layout.test)
    opened.set_labels(labels)
    opened.notes = (*layout.notes, *notes, *about_room(sum(files[path][0] for path in pictures)))
    return opened


def _contents(names: list[str]) -> str:
    if not names:
        return "nothing, or is not there"
    endings = Counter(posixpath.splitext(name)[1].lower() or "no ending" for name in names)
    listed = ", ".join(ending for ending, _ in endings.most_common(5))
    return f"{len(names):,} files, none of them pictures or {METADATA[0]} of some: {listed}"


def about_room(size: int) -> tuple[str, ...]:
    """A line where the cache on disk is smaller than a set of so many bytes, which is then fetched over and over."""
    if size <= bound() * 3 // 4:
        return ()
    return (
        f"the pictures are {size / 1e9:.1f} GB and the cache on this disk holds {bound() / 1e9:g} GB: in each epoch "
        f"they are fetched again; raise {SETTING}, or pack shards, which are read in their order",
    )
