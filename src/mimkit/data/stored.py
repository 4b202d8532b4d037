"""Files that are read at places, wherever they lie: a path or a URL enters, an object that reads parts of it leaves."""

import errno
import io
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from mimkit.core.urls import is_url


class StoredFile(ABC):
    """A file of which any part can be read. Cheap to hand to worker processes: each opens it for itself."""

    place: str  # its path or URL, as the user gave it, without credentials

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes."""

    @property
    @abstractmethod
    def version(self) -> str:
        """Changes when the content does: by size and time of a local file, by the ETag of an object in a store."""

    @property
    def mark(self) -> object:
        """The version as fingerprints of sets hold it."""
        return self.version

    @abstractmethod
    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from a place on.

        Raises OSError, also where the file ends before, and UserError where a store cannot be reached.
        """


class LocalFile(StoredFile):
    """A file on a disk of this machine. Readers of one file do not disturb each other: it has no position."""

    def __init__(self, path: Path) -> None:
        self.place, self._path = str(path), Path(os.path.abspath(path))
        self._opened: int | None = None
        status = os.stat(self._path)
        self._size, self._version = status.st_size, f"{status.st_size} {status.st_mtime_ns}"

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_opened": None}

    def __del__(self) -> None:
        if self.__dict__.get("_opened") is not None:
            os.close(self.__dict__["_opened"])

    @property
    def size(self) -> int:
        return self._size

    @property
    def version(self) -> str:
        return self._version

    @property
    def mark(self) -> object:
        return tuple(map(int, self._version.split()))  # as earlier versions noted it

    def read(self, offset: int, size: int) -> bytes:
        if self._opened is None:
            self._opened = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        data = os.pread(self._opened, size, offset)
        while len(data) < size:  # one call gives at most 2 GB
            piece = os.pread(self._opened, size - len(data), offset + len(data))
            if not piece:
                raise OSError(0, "the file ends before it")
            data += piece
        return data


def open_stored(place: str) -> StoredFile:
    """The file at a path or a URL. Raises OSError, of a URL UserError."""
    if is_url(place):
        from mimkit.data.remote import RemoteFile  # which builds on this file

        return RemoteFile(place)
    return LocalFile(Path(place).expanduser())


def absolute(place: str) -> str:
    """A path as it is from any folder; a URL as it is."""
    return place if is_url(place) else os.path.abspath(place)


class _Cursor(io.RawIOBase):
    """A place in a stored file."""

    def __init__(self, stored: StoredFile) -> None:
        self._stored, self._place = stored, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._stored.size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, "a place before the file")
        self._place = start + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        size = max(0, min(len(view), self._stored.size - self._place))
        view[:size] = self._stored.read(self._place, size)
        self._place += size
        return size


def as_file(stored: StoredFile) -> io.BufferedReader:
    """A stored file for libraries that read Python's files."""
    return io.BufferedReader(_Cursor(stored), 1 << 16)
