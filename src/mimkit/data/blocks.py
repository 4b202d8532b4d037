"""Blocks of remote files on a local disk: a name and bytes enter, and leave again, to whichever process asks next.

Each block is a file of its own, with a checksum for every page of it behind its bytes. All processes of a machine share
them, runs after each other too.
"""

import fcntl
import os
import tempfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from mimkit.core.errors import UserError
from mimkit.data.folders import cache_folder

SETTING = "MIMKIT_CACHE_GB"
USUAL = 50.0  # GB
PAGE = 1 << 15  # bytes of a checksum: what is verified for a picture is little more than the picture
_LOCKS = 256


def bound() -> int:
    """Bytes that blocks may take on the disk; 0 keeps none. Raises UserError for a setting that is no number."""
    text = os.environ.get(SETTING, "")
    try:
        gigabytes = float(text or USUAL)
        if not 0 <= gigabytes < 1e9:
            raise ValueError
    except ValueError:
        raise UserError(f"{SETTING}={text} is no number of gigabytes: 50, or 0 for no cache") from None
    return int(gigabytes * 1e9)


class Blocks:
    """The blocks in a folder. Cheap to make, and without state but for how much this process wrote."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._written = limit  # so that a process looks before its first block how much there is

    def read(self, name: str, size: int, start: int, stop: int) -> bytes | None:
        """Bytes from `start` to `stop` of a block of `size`; None where it is absent or damaged, which removes it."""
        path = self._path(name)
        first, last = start // PAGE, -(-stop // PAGE)
        try:
            opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            pages = -(-size // PAGE)
            begin, end = first * PAGE, min(last * PAGE, size)
            data = os.pread(opened, end - begin, begin)
            sums = os.pread(opened, 4 * (last - first), size + 4 * first)
            whole = os.fstat(opened).st_size == size + 4 * pages and len(data) == end - begin
            if whole and sums == checksums(data):
                os.utime(path)  # the time tells which was not used for longest
                return data[start - begin : stop - begin]
        except OSError:  # removed meanwhile, or a disk that cannot be read
            return None
        finally:
            os.close(opened)
        with suppress(OSError):
            os.unlink(path)
        return None

    def write(self, name: str, data: bytes) -> None:
        """Keep a block: beside and renamed. A full disk loses its oldest blocks, and is no error."""
        if self._written >= self.limit // 256:  # seldom enough, and often enough for a hundred processes
            self._make_room(self.limit * 3 // 4 - len(data))  # the rest is for what others write meanwhile
        if not self.keeps(len(data)):
            return
        for _ in range(2):
            try:
                self._write(self._path(name), data)
                self._written += len(data)
                return
            except OSError:
                self._make_room(self.total() // 2)

    def keeps(self, size: int) -> bool:
        """Whether there is room for several blocks of this size."""
        return 4 * size <= self.limit

    def _write(self, path: str, data: bytes) -> None:
        folder = os.path.dirname(path)
        os.makedirs(folder, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as file:
            try:
                file.write(data)
                file.write(checksums(data))
                file.close()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise

    @contextmanager
    def alone(self, name: str) -> Generator[None]:
        """Inside, no other thread or process fetches this block. Where locks are not possible, they might."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            opened = os.open(self.folder / f"{int(name[:8], 16) % _LOCKS:03d}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            yield
            return
        try:
            with suppress(OSError):
                fcntl.flock(opened, fcntl.LOCK_EX)
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(opened, fcntl.LOCK_UN)  # a process that was forked meanwhile has it open too
            os.close(opened)

    def total(self) -> int:
        """Bytes of all blocks."""
        return sum(size for _, size, _ in self._all())

    def _make_room(self, most: int) -> None:
        """Remove the blocks that were not used for longest, until the others are `most` bytes."""
        self._written = 0
        blocks = sorted(self._all())
        total = sum(size for _, size, _ in blocks)
        for _, size, path in blocks:
            if total <= most:
                return
            with suppress(OSError):
                os.unlink(path)
            total -= size

    def _all(self) -> list[tuple[int, int, str]]:
        """Time of the last use, size and path of each, of unfinished ones too."""
        blocks = []
        with suppress(OSError):
            for folder in [entry.path for entry in os.scandir(self.folder) if entry.is_dir()]:
                for entry in os.scandir(folder):
                    with suppress(OSError):
                        status = entry.stat()
                        blocks.append((status.st_mtime_ns, status.st_size, entry.path))
        return blocks

    def _path(self, name: str) -> str:
        return f"{self.folder}/{name[:2]}/{name}"


def checksums(data: bytes) -> bytes:
    """Of each page of a block, 4 bytes."""
    view = memoryview(data)
    return b"".join(zlib.crc32(view[i : i + PAGE]).to_bytes(4, "little") for i in range(0, len(data), PAGE))


_shared: dict[tuple[str | None, str | None], Blocks] = {}


def blocks() -> Blocks:
    """Those of this machine, in mimkit's cache folder."""
    key = (os.environ.get("XDG_CACHE_HOME"), os.environ.get(SETTING))
    if key not in _shared:
        _shared[key] = Blocks(cache_folder() / "blocks", bound())
    return _shared[key]
