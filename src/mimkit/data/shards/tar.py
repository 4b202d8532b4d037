"""Tar files, wherever they lie: a stored file enters, names and places of its members leave; or a member's header does.

Only headers are looked at. Understood are ustar, the long names of GNU and of pax, and sizes above 8 GB.
"""

import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from mimkit.core.errors import UserError
from mimkit.data.stored import LocalFile, StoredFile

BLOCK = 512  # bytes; headers begin at multiples of it
RECORD = 20 * BLOCK  # what a tar file is filled up to
_PIECE = 1 << 13  # bytes read at once of a local file: a header, and small members with the next ones behind it
_REMOTE_PIECE = 1 << 23  # in a store each request takes milliseconds
_LARGEST_NAME = 1 << 20  # bytes of a header that is itself a member
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes
_LONG_NAME, _LONG_LINK, _PAX, _PAX_OF_ALL, _SPARSE = b"L", b"K", b"x", b"g", b"S"
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


class Member(NamedTuple):
    """A file in a tar file."""

    name: bytes
    offset: int
    """Of its first byte."""
    size: int
    """Bytes."""
    regular: bool
    """False for folders, links, devices, and files with holes, whose bytes are not in one piece."""
    folder: bool


class Window:
    """A file of which the stretch that was read last is kept: headers and small members lie close together."""

    def __init__(self, file: StoredFile) -> None:
        self.file = file
        self._piece = _PIECE if isinstance(file, LocalFile) else _REMOTE_PIECE
        self._data, self._start = b"", 0

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from a place on, which lie in the file. Raises OSError."""
        first = offset - self._start
        if first < 0 or first + size > len(self._data):
            self._data = self.file.read(offset, min(max(size, self._piece), self.file.size - offset))
            self._start, first = offset, 0
        return self._data[first : first + size]


def members(window: Window) -> Iterator[Member]:
    """All members in order.

    Raises:
        UserError: the file is no tar file, is damaged, or ends in the middle of a member.
        OSError: it cannot be read.
    """
    file, offset = window.file, 0
    of_all: dict[bytes, bytes] = {}
    notes: dict[bytes, bytes] = {}  # of the next member
    while offset + BLOCK <= file.size:
        header = window.read(offset, BLOCK)
        if header.count(0) == BLOCK:  # the end
            return
        _check(header, offset, file)
        kind, size, name = header[156:157], _number(header[124:136], file), _name(header)
        if kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_OF_ALL):
            notes |= _read_notes(window, kind, offset + BLOCK, size, of_all)
            offset += BLOCK + _filled(size)
            continue
        notes = of_all | notes
        name = notes.get(b"path", name)
        try:
            size = int(notes.get(b"size", size))
        except ValueError:
            raise _damaged(file) from None
        offset += BLOCK
        if kind == _SPARSE:
            offset += _extensions(window, header, offset)
        stored = 0 if kind in _WITHOUT_DATA else size
        if offset + stored > file.size:
            raise _truncated(file, name)
        whole = not any(key.startswith(b"GNU.sparse") for key in notes)
        folder = kind == b"5" or (kind == b"\0" and name.endswith(b"/"))
        yield Member(name, offset, size, kind in _REGULAR and whole and not folder, folder)
        offset, notes = offset + _filled(stored), {}
    if notes or offset < file.size:
        raise _truncated(file, b"")


def header(name: str, size: int) -> bytes:
    """The header of a regular file: ustar, without a time or an owner, so that equal files make equal bytes.

    Raises ValueError for a name of more than 255 bytes, or that cannot be cut at a `/`.
    """
    about = tarfile.TarInfo(name)
    about.size = size
    return about.tobuf(tarfile.USTAR_FORMAT)


def padding(size: int) -> bytes:
    """What follows the bytes of a member."""
    return bytes(_filled(size) - size)


def ending(size: int) -> bytes:
    """What ends a tar file of so many bytes."""
    return bytes(2 * BLOCK + -(size + 2 * BLOCK) % RECORD)


def _filled(size: int) -> int:
    """Bytes in whole blocks."""
    return -(-size // BLOCK) * BLOCK


def _check(header: bytes, offset: int, file: StoredFile) -> None:
    """Raises UserError for a block that is no header."""
    try:
        expected = int(header[148:156].strip(b" \0") or b"0", 8)
    except ValueError:
        expected = -1
    total = sum(header) - sum(header[148:156]) + 8 * 32  # as if its own field were blank
    if expected == total:
        return
    negative = 256 * sum(byte > 127 for byte in header[:148] + header[156:])
    if expected == total - negative:  # old programs add signed bytes
        return
    if offset:
        raise _damaged(file)
    if header.startswith(_COMPRESSED):
        raise UserError(
            f"{file.place} cannot be read picture by picture, since it is compressed as a whole: decompress it"
        )
    raise UserError(f"{file.place} is no tar file that can be read: name tar files")


def _number(field: bytes, file: StoredFile) -> int:
    """A number in octal digits, or where those do not suffice in base 256."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        size = int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        size = -1
    if size < 0:
        raise _damaged(file)
    return size


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0]
    # What GNU's own format keeps there is no prefix.
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _read_notes(window: Window, kind: bytes, offset: int, size: int, of_all: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """What a header that is a member of its own says of the next member; what it says of all goes into `of_all`."""
    if offset + size > window.file.size:
        raise _truncated(window.file, b"")
    if size > _LARGEST_NAME:
        raise _damaged(window.file)
    data = window.read(offset, size)
    if kind == _LONG_LINK:
        return {}
    if kind == _LONG_NAME:
        return {b"path": data.partition(b"\0")[0]}
    notes = {}
    while data.strip(b"\0"):
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not len(length) + 1 < int(length) <= len(data):
            raise _damaged(window.file)
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        notes[key], data = value, data[int(length) :]
    if kind == _PAX_OF_ALL:
        of_all.update(notes)
        return {}
    return notes


def _extensions(window: Window, header: bytes, offset: int) -> int:
    """Bytes of further headers, which say where a file of GNU's old format has holes."""
    size, more = 0, header[482]
    while more:
        if offset + size + BLOCK > window.file.size:
            raise _truncated(window.file, b"")
        more = window.read(offset + size, BLOCK)[504]
        size += BLOCK
    return size


def _truncated(file: StoredFile, name: bytes) -> UserError:
    inside = f" in the middle of {name.decode(errors='replace')}" if name else ""
    return UserError(f"{file.place} is truncated: it ends{inside} at {file.size:,} bytes; copy it again")


def _damaged(file: StoredFile) -> UserError:
    return UserError(f"{file.place} is damaged: it has a header that no tar file has; copy it again")
