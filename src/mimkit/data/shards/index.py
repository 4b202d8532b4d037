"""The index of a set in shards: where each picture lies, its name and its label enter a file; they leave it mapped.

`NAME.index.npz` holds columns that numpy.load reads too, uncompressed and at multiples of 64 bytes, so that all readers
share one mapping of it, and `about.json`. The train split comes first, behind it the test split; in each, pictures lie
in the order of the shards and in these by offset.
"""

import io
import json
import os
import struct
import tempfile
import zipfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from mimkit.core.errors import UserError
from mimkit.core.schema import Misfit, fit, fit_fields, plain
from mimkit.data.folders import Paths, cache_folder
from mimkit.data.pictures import digest
from mimkit.data.stored import LocalFile, StoredFile, open_stored

ENDING = ".index.npz"
FORMAT = 1
_TYPES = {"shard": "<i4", "offset": "<i8", "size": "<i8", "label": "<i8", "checksum": "<u4", "name_ends": "<i8"}
_ALIGNED = 64  # bytes
_LOCAL = struct.Struct("<26xHH")  # of a header in a zip: lengths of the name and of what is behind it
_ZIP64 = 20  # bytes that zipfile puts into each header
_PIECE = 1 << 23  # bytes of an index in a store that are copied at once
_PROBED = 4096  # bytes


@dataclass(frozen=True)
class Shard:
    """A tar file of the set."""

    name: str
    """Relative to the folder of the index; or a URL or an absolute path, where it lies somewhere else."""
    size: int
    """Bytes."""
    version: str
    """Of the file that was indexed. A copy has another one."""
    probe: tuple[int, ...] = ()
    """Offsets of a few headers, with the bytes behind them."""
    digest: str = ""
    """Of what lies there: it tells a copy from another file."""


@dataclass(frozen=True)
class About:
    """What an index says besides its columns."""

    shards: tuple[Shard, ...]
    train: int
    """Pictures of the train split, or of all; those behind them are the test split."""
    classes: tuple[str, ...] | None = None
    named: bool = False
    """As in Labels."""
    no_labels: str = ""
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    """Pictures that could not be read when the set was packed: where they lay, and the reasons."""
    packed: dict[str, Any] = field(default_factory=dict)
    """Settings with which 'mimkit shards pack' made the set; empty for shards that others made."""
    fingerprint: str = ""
    """Of the columns, classes, and names, sizes and digests of the shards: the same wherever they lie."""
    format: int = FORMAT


@dataclass(frozen=True)
class Rows:
    """Pictures one after the other: n entries in each column."""

    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    label: np.ndarray
    """-1: none."""
    checksum: np.ndarray
    """CRC-32; empty where the shards were indexed by their headers alone."""
    names: Paths
    """Of members."""

    def columns(self) -> dict[str, np.ndarray]:
        """As they are written."""
        values = {name: vars(self)[name] for name in ("shard", "offset", "size", "label", "checksum")}
        values["name_ends"] = self.names.ends
        typed = {name: np.ascontiguousarray(values[name], dtype) for name, dtype in _TYPES.items()}
        return typed | {"names": np.ascontiguousarray(self.names.buffer, "u1")}


@dataclass(frozen=True)
class Index:
    """An index that is open. A worker that is sent it maps the file anew."""

    file: Path
    """On a disk of this machine."""
    folder: str
    """Path or URL that names of shards are relative to."""
    about: About
    rows: Rows

    def __reduce__(self) -> Any:
        return _open_local, (self.file, self.folder, str(self.file))

    def __len__(self) -> int:
        return len(self.rows.offset)

    def place(self, shard: int) -> str:
        """Path or URL of a shard."""
        name = self.about.shards[shard].name
        return name if "://" in name or name.startswith("/") else f"{self.folder}/{name}"

    def of_shard(self, shard: int) -> np.ndarray:
        """Numbers of its pictures."""
        train = self.about.train
        bounds = [np.searchsorted(column, (shard, shard + 1)) for column in np.split(self.rows.shard, [train])]
        return np.concatenate([np.arange(*bounds[0]), train + np.arange(*bounds[1])])

    def labels(self, first: int, end: int) -> Int64[Tensor, " n"] | None:
        """Of pictures `first .. end - 1`, mapped as well; None where the set has no classes."""
        return torch.from_numpy(self.rows.label[first:end]) if self.about.classes else None


def probe(file: StoredFile, places: tuple[int, ...]) -> str:
    """A digest of what lies at some places of a file. Raises OSError."""
    return digest(*(file.read(place, min(_PROBED, file.size - place)) for place in places))


def write_index(file: Path, about: About, rows: Rows) -> None:
    """Write beside, and rename. The same set makes the same bytes. Raises OSError."""
    columns = rows.columns()
    shards = [(shard.name, shard.size, shard.digest) for shard in about.shards]
    fingerprint = digest(*(column.tobytes() for column in columns.values()), about.classes, about.train, shards)
    about = replace(about, fingerprint=fingerprint)
    partial = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with open(partial, "wb") as out:
            with zipfile.ZipFile(out, "w") as archive:
                for name, column in columns.items():
                    start = io.BytesIO()
                    np.lib.format.write_array_header_1_0(start, np.lib.format.header_data_from_array_1_0(column))
                    entry = zipfile.ZipInfo(f"{name}.npy")
                    # numpy fills its own header up to 64 bytes; the zip's before it is filled up here.
                    begin = out.tell() + 30 + len(entry.filename) + _ZIP64 + 4
                    filling = -begin % _ALIGNED
                    entry.extra = struct.pack("<HH", 0xD935, filling) + bytes(filling)
                    with archive.open(entry, "w", force_zip64=True) as member:
                        member.write(start.getvalue())
                        member.write(column.data)
                text = json.dumps(asdict(about), sort_keys=True)
                archive.writestr(zipfile.ZipInfo("about.json"), text.encode("utf-8", "surrogateescape"))
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def open_index(place: str) -> Index:
    """The index at a path or URL; one in a store is copied into the cache once. Raises UserError."""
    try:
        stored = open_stored(place)
        local = Path(os.path.abspath(stored.place)) if isinstance(stored, LocalFile) else _copy(stored)
    except OSError as error:
        raise UserError(f"cannot read {place}: {error.strerror or error}") from None
    folder = os.path.dirname(os.path.abspath(local)) if isinstance(stored, LocalFile) else place.rpartition("/")[0]
    return _open_local(local, folder, place)


def _copy(stored: StoredFile) -> Path:
    """A copy in the cache, of which a part that was written is not seen. Raises OSError."""
    local = cache_folder() / "shards" / f"{digest(stored.place, stored.version)}{ENDING}"
    if local.exists():
        return local
    local.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=local.parent, suffix=".part", delete=False) as out:
        try:
            for offset in range(0, stored.size, _PIECE):
                out.write(stored.read(offset, min(_PIECE, stored.size - offset)))
            out.close()
            os.replace(out.name, local)
        except BaseException:
            os.unlink(out.name)
            raise
    return local


def _open_local(file: Path, folder: str, place: str) -> Index:
    try:
        about, columns = _map(file)
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise UserError(
                f"{place} is an index of another version of mimkit: make it anew with 'mimkit shards index'"
            )
        shards = tuple(Shard(**fit_fields(Shard, item, "shards")) for item in fit(about["shards"], list[Any], "shards"))
        settings = fit_fields(About, about | {"shards": []})
        about = About(**settings | {"shards": shards})
        names = Paths(columns.pop("names"), columns.pop("name_ends"))
        rows = Rows(**columns, names=names)
        _check(about, rows)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, struct.error) as error:
        if isinstance(error, UserError) and not isinstance(error, Misfit):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{place} is damaged, or no index ({reason:.100}): copy it again, or 'mimkit shards index' makes it anew"
        ) from None
    return Index(file, folder, about, rows)


def _map(file: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """What stands in `about.json`, and the columns, of which pages are read when they are needed."""
    # Private pages: a tensor of a mapping that cannot be written would make torch warn.
    whole = np.asarray(np.memmap(file, np.uint8, "c"))
    columns, about = {}, None
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.filename == "about.json":
                about = plain(json.loads(archive.read(entry).decode("utf-8", "surrogateescape")))
                continue
            name = entry.filename.removesuffix(".npy")
            lengths = _LOCAL.unpack(whole[entry.header_offset : entry.header_offset + 30].tobytes())
            begin = entry.header_offset + 30 + sum(lengths)
            start = io.BytesIO(whole[begin : begin + 256].tobytes())
            np.lib.format.read_magic(start)
            shape, _, dtype = np.lib.format.read_array_header_1_0(start)
            begin += start.tell()
            if entry.compress_type != zipfile.ZIP_STORED or dtype != np.dtype(_TYPES.get(name, "u1")):
                raise ValueError(f"its column {name} is compressed or of another type")
            columns[name] = whole[begin : begin + dtype.itemsize * shape[0]].view(dtype)
    return about, columns


def _check(about: About, rows: Rows) -> None:
    """Raises ValueError where columns do not belong to each other."""
    n = len(rows.offset)
    lengths = {len(rows.shard), len(rows.size), len(rows.label), len(rows.names), n}
    if len(lengths) > 1 or len(rows.checksum) not in (0, n) or not 0 <= about.train <= n:
        raise ValueError("its columns have different lengths")
    if not n:
        return
    end, classes = int(rows.names.ends[-1]), len(about.classes or ())
    if end != len(rows.names.buffer) or not 0 <= int(rows.shard.min()) <= int(rows.shard.max()) < len(about.shards):
        raise ValueError("it names members or shards that are not there")
    if int(rows.label.max()) >= classes or int(rows.label.min()) < -1:
        raise ValueError("it has labels without a class")
