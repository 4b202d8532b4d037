"""Archives: a zip or tar file enters; the pictures in it, read one by one where they lie, leave.

The members are listed once, from the central directory of a zip or the headers of a tar. A picture is then read by its
offset, by as many processes as there are: nothing is unpacked, and no place in the file is shared.
"""

import os
import posixpath
import struct
import tarfile
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mimkit.core.errors import UserError
from mimkit.core.urls import is_url
from mimkit.data.encoded import Encoded
from mimkit.data.folders import ENDINGS, Paths, cache_folder
from mimkit.data.layout import arrange
from mimkit.data.pictures import Pictures, Split, digest
from mimkit.data.reading import Reading
from mimkit.data.stored import StoredFile, absolute, as_file, open_stored
from mimkit.data.tables import METADATA, labeled_layout

KINDS = (".zip", ".tar")
PACKED = (".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tar.zst", ".7z", ".rar")
"""What can be read from its beginning alone."""
MANY = 10_000  # members of an archive whose list is kept in the cache
_LOCAL = struct.Struct("<4s22xHH")  # a member's header in a zip: signature, lengths of its name and extra field
_NAME = 256  # bytes that name and extra field of a member seldom exceed
_PLAIN, _STORED, _DEFLATED = -1, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


@dataclass(frozen=True)
class Members:
    """Where the pictures of an archive lie, and tables of their labels."""

    names: Paths
    places: np.ndarray
    """(n, 5) int64: offset, bytes in the archive, bytes of the file, checksum, and how it is kept: -1 in a tar."""
    skipped: tuple[str, ...] = ()
    """A line for each kind of thing that was not taken."""

    @staticmethod
    def pack(places: dict[bytes, tuple[int, ...]], skipped: dict[str, list[str]]) -> "Members":
        """In the order of their names."""
        names = sorted(places)
        lines = tuple(f"skipped, {reason}: {len(those):,}, as {those[0]}" for reason, those in skipped.items())
        table = np.array([places[name] for name in names], np.int64).reshape(-1, 5)
        return Members(Paths.pack(names), table, lines)


class Archive(Encoded):
    """Pictures in a zip or tar file; `places` are theirs."""

    def __init__(self, name: str, file: StoredFile, top: bytes, paths: Paths, places: np.ndarray) -> None:
        self.name, self._file, self._top, self._paths, self._places = name, file, top, paths, places

    def __len__(self) -> int:
        return len(self._paths)

    def data(self, i: int) -> bytes:
        return read_member(self._file, self._places[i])

    def where(self, i: int) -> str:
        return f"{absolute(self._file.place)}/{os.fsdecode(self._top + self._paths[i])}"

    @property
    def fingerprint(self) -> str:
        """From the names, and size and time of the archive, or its version in a store."""
        return digest(self._paths.buffer.tobytes(), self._paths.ends.tobytes(), self._file.mark)


def read_member(file: StoredFile, place: np.ndarray) -> bytes:
    """The bytes of one member of an archive. Raises OSError, also for what is not what the archive says."""
    offset, packed, size, checksum, kind = place.tolist()
    if kind == _PLAIN:
        return file.read(offset, size)
    # Header and bytes at once: in a store each look has a price.
    ahead = file.read(offset, max(_LOCAL.size, min(_LOCAL.size + _NAME + packed, file.size - offset)))
    signature, name, extra = _LOCAL.unpack_from(ahead)
    if signature != b"PK\x03\x04":
        raise OSError(0, "damaged in the archive")
    start = _LOCAL.size + name + extra
    data = ahead[start : start + packed]
    if len(data) < packed:
        data += file.read(offset + start + len(data), packed - len(data))
    if kind == _DEFLATED:
        try:
            data = zlib.decompressobj(-15).decompress(data, size + 1)  # no more than it says, whatever is in it
        except zlib.error:
            raise OSError(0, "damaged in the archive") from None
    if len(data) != size or zlib.crc32(data) != checksum:
        raise OSError(0, "damaged in the archive")
    return data


def open_archive(place: str, split: Split, reading: Reading) -> Pictures:
    """The pictures in a zip or tar file, laid out as `open_folder` has it; a folder that holds all is passed over.

    `place` is a path or a URL. Raises UserError.
    """
    file, members = members_of(place)
    every = list(members.names)
    tables = {path: place for place, path in enumerate(every) if posixpath.basename(path).decode() in METADATA}
    numbers = [place for place, path in enumerate(every) if path not in tables]
    if not numbers:
        raise UserError("; ".join([f"{place} holds no pictures that can be read", *members.skipped]))
    wrapper = _wrapper([every[number] for number in numbers])
    paths = [every[number][len(wrapper) :] for number in numbers]
    layout = arrange(paths)

    def read(path: bytes) -> bytes | None:
        number = tables.get(wrapper + path)
        return None if number is None else read_member(file, members.places[number])

    layout, notes = labeled_layout(layout, paths, read, reading, place)
    part, top, labels = layout.of(split)
    names = Paths.pack([paths[number][len(top) :] for number in part])
    places = members.places[[numbers[number] for number in part]]
    pictures = Archive(place, file, wrapper + top, names, places)
    pictures.reading, pictures.has_test = reading, bool(layout.test)
    pictures.set_labels(labels)
    pictures.notes = (*layout.notes, *notes, *members.skipped)
    return pictures


def _wrapper(paths: list[bytes]) -> bytes:
    """The folder that holds all paths, with a `/` at its end; empty when there is none."""
    folder = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    return folder + b"/" if folder else b""


def members_of(place: str) -> tuple[StoredFile, Members]:
    """An archive, its pictures and metadata; from the cache where they are many. Raises UserError."""
    try:
        file = open_stored(place)
        cached = cache_folder() / "archives" / f"{digest(absolute(file.place), file.mark)}.npz"
        try:
            with np.load(cached, allow_pickle=False) as kept:
                names = Paths(kept["names"], kept["ends"])
                return file, Members(names, kept["places"], tuple(kept["skipped"].tolist()))
        except Exception:  # no cache, or one that is damaged: list them anew
            members = _zip_members(file) if file.place.lower().endswith(".zip") else _tar_members(file)
    except (OSError, zipfile.BadZipFile, tarfile.TarError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{place} cannot be read as an archive ({reason}): pack it again, or unpack it") from None
    if len(members.names) > MANY or is_url(place):
        _keep(cached, members)
    return file, members


def _keep(cached: Path, members: Members) -> None:
    """Write the list beside and rename; a cache that cannot be written is no error."""
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cached.parent, suffix=".part", delete=False) as file:
            np.savez(
                file,
                names=members.names.buffer,
                ends=members.names.ends,
                places=members.places,
                skipped=np.array(members.skipped, str),
            )
        os.replace(file.name, cached)
    except OSError:
        pass


def _name(name: str) -> bytes | None:
    """A member's path as those of a folder; None for what a folder would not give either."""
    path = posixpath.normpath(name.replace("\\", "/")).lstrip("/")
    parts = path.split("/")
    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return None
    picture = posixpath.splitext(path)[1].lower() in ENDINGS
    return path.encode("utf-8", "surrogateescape") if picture or parts[-1] in METADATA else None


def _zip_members(file: StoredFile) -> Members:
    places: dict[bytes, tuple[int, ...]] = {}
    skipped: dict[str, list[str]] = {}
    with as_file(file) as opened, zipfile.ZipFile(opened) as archive:
        for member in archive.infolist():
            path = None if member.is_dir() else _name(member.filename)
            if path is None:
                continue
            if member.flag_bits & 1:
                skipped.setdefault("encrypted", []).append(member.filename)
            elif member.compress_type not in (_STORED, _DEFLATED):
                skipped.setdefault(f"compressed by method {member.compress_type}", []).append(member.filename)
            else:
                sizes = member.compress_size, member.file_size
                places[path] = (member.header_offset, *sizes, member.CRC, member.compress_type)
    return Members.pack(places, skipped)


def _tar_members(file: StoredFile) -> Members:
    places: dict[bytes, tuple[int, ...]] = {}
    skipped: dict[str, list[str]] = {}
    with as_file(file) as opened, tarfile.open(fileobj=opened, mode="r:", errorlevel=2) as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[missing-attribute]  # it would keep a million of them
            path = None if member.isdir() else _name(member.name)
            if path is None:
                continue
            if not member.isreg() or member.issparse():
                skipped.setdefault("no regular files", []).append(member.name)
            else:
                places[path] = (member.offset_data, member.size, member.size, 0, _PLAIN)
    return Members.pack(places, skipped)


def refuse_packed(place: str) -> None:
    """Raises UserError for an archive that can be read from its beginning alone, by name or by its first bytes."""
    name, file = place.lower(), open_stored(place)
    start = file.read(0, min(6, file.size))
    packed = start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
    if name.endswith(PACKED) or (packed and name.endswith(KINDS)):
        raise UserError(
            f"{place} cannot be read picture by picture, since it is compressed as a whole: unpack it, or pack it "
            "again as .zip or plain .tar"
        )
