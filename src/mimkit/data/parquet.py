"""Parquet files with encoded pictures and labels, as Hugging Face writes them, enter, Pictures leave."""

import fcntl
import itertools
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mimkit.core.errors import UserError, missing_extra
from mimkit.core.urls import is_url, join
from mimkit.data.classes import Labels, label_column, number_values
from mimkit.data.encoded import Encoded
from mimkit.data.folders import cache_folder
from mimkit.data.pictures import Pictures, Split, digest, first_few
from mimkit.data.reading import Reading
from mimkit.data.remote import AT_ONCE, BLOCK, describe
from mimkit.data.stored import absolute, as_file, open_stored
from mimkit.data.tables import class_names

_IMAGES = (
    "image",
    "img",
    "picture",
    "photo",
    "pixels",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "image_bytes",
    "bytes",
    "content",
)
_KIND = r"(train|training|val|valid|validation|test|testing)"
_SPLIT = re.compile(rf"{_KIND}(-.*|[_.]?\d.*)?$", re.IGNORECASE)  # train, train-00000-of-00005, train_0, train.0
_FOLDER = re.compile(rf"(?:partial-)?{_KIND}$", re.IGNORECASE)
_TEST_ORDER = ("val", "valid", "validation", "test", "testing")
IN_MEMORY = 2 << 30  # bytes; more is laid out once in a cache file and mapped, for random access without decompression
_BUFFER = 1 << 20  # bytes of a file that are read ahead
_AT_ONCE = 64  # rows


class Blobs:
    """Many byte strings end to end; in memory, or mapped from a file that every worker shares."""

    def __init__(self, ends: np.ndarray, held: np.ndarray | Path) -> None:
        self._ends, self._held = ends, held
        self._buffer = held if isinstance(held, np.ndarray) else np.memmap(held, np.uint8, "r")

    def __reduce__(self) -> Any:  # a worker maps the file anew, instead of being sent its bytes
        return Blobs, (self._ends, self._held)

    def __getitem__(self, i: int) -> bytes:
        return self._buffer[self._ends[i - 1] if i else 0 : self._ends[i]].tobytes()


class Rows(Encoded):
    """The rows of some Parquet files in order."""

    def __init__(
        self,
        name: str,
        files: list[str],
        blobs: Blobs,
        rows: list[int],
        *,
        reading: Reading,
        has_test: bool,
    ) -> None:
        self.name, self._files, self._blobs, self._ends = name, files, blobs, list(itertools.accumulate(rows))
        self.reading, self.has_test = reading, has_test

    def __len__(self) -> int:
        return self._ends[-1]

    def data(self, i: int) -> bytes:
        return self._blobs[i]

    def where(self, i: int) -> str:
        file = next(place for place, end in enumerate(self._ends) if i < end)
        return f"{self._files[file]} row {i - (self._ends[file - 1] if file else 0)}"

    @property
    def fingerprint(self) -> str:
        return _identity(self._files)


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files of a folder, or of its `data` folder, in order; metadata of picture files aside."""
    files = [file for file in sorted(folder.glob("*.parquet")) if file.name != "metadata.parquet"]
    return files or sorted(folder.glob("data/*.parquet"))


def parquet_below(folder: Path) -> list[Path]:
    """All Parquet files below a folder, as `default/train/0000.parquet` of the Hub.

    Raises UserError where there are several configurations and none is called `default`.
    """
    files = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*.parquet"))]
    return [folder / file for file in _of_one_configuration(files, str(folder))]


def parquet_among(url: str, paths: list[str]) -> list[str]:
    """URLs of the Parquet files among the paths of all files below a URL, as `parquet_files` and `parquet_below`."""
    tables = [path for path in paths if path.endswith(".parquet") and os.path.basename(path) != "metadata.parquet"]
    for folder in ("", "data"):
        if here := [path for path in tables if os.path.dirname(path) == folder]:
            return [join(url, path) for path in here]
    return [join(url, path) for path in _of_one_configuration(tables, url)]


def _of_one_configuration(paths: list[str], folder: str) -> list[str]:
    """Those of `default` where several configurations lie below a folder; hidden ones aside. Raises UserError."""
    paths = [path for path in paths if not any(word.startswith(".") for word in path.split("/"))]
    tops = sorted({path.partition("/")[0] for path in paths if "/" in path})
    configurations = [top for top in tops if not _FOLDER.match(top)]
    if len(configurations) < 2:
        return paths
    if "default" not in configurations:
        raise UserError(f"{folder} holds {', '.join(configurations)}: name one, as {join(folder, configurations[0])}")
    return [path for path in paths if path.startswith("default/")]


def _split_of(file: str, root: str) -> str | None:
    """What split a file belongs to, by its name or that of a folder that holds it."""
    *folders, name = file.removeprefix(root).strip("/").split("/")
    for match in (_SPLIT.match(name.removesuffix(".parquet")), *(_FOLDER.match(name) for name in reversed(folders))):
        if match:
            return "train" if match[1].lower().startswith("train") else match[1].lower()
    return None


def open_parquet(name: str, files: list[str], split: Split, reading: Reading) -> Pictures:
    """The pictures of Parquet files; `train`, `train-*`, `train_0`, `val*-*`, ... among the names are splits.

    So are folders of such names. Columns: pictures in `image` (struct with `bytes`, or binary) or one called alike,
    labels in `label` or one called alike. Classes are those of all splits. Files are paths or URLs. Raises UserError.
    """
    files = [absolute(file) for file in files]
    # A folder that is itself called train is no split of the files in it.
    root = os.path.commonpath([os.path.dirname(_path(file)) for file in files])
    groups: dict[str | None, list[str]] = {}
    for file in files:
        groups.setdefault(_split_of(_path(file), root), []).append(file)
    kind = next((kind for kind in _TEST_ORDER if kind in groups), None)
    has_test = kind is not None and "train" in groups
    train = groups.get("train", files)
    test = groups[kind] if has_test else []
    tables = {file: _open_file(file) for file in (*train, *test)}
    used = test if test and split == "test" else train
    labels, notes = _labels(name, [tables[file] for file in (*train, *test)], reading.label_column)
    rows = [tables[file].metadata.num_rows for file in (*train, *test)]
    ahead, behind = sum(rows[: len(train)]), sum(rows)
    part = slice(ahead, behind) if used is test else slice(0, ahead)
    rows = rows[len(train) :] if used is test else rows[: len(train)]
    if not sum(rows):
        raise UserError(f"{name} holds no rows")
    used_tables = [tables[file] for file in used]
    blobs = _gather(used, used_tables, _image_column(used[0], used_tables[0].schema_arrow))
    pictures = Rows(name, used, blobs, rows, reading=reading, has_test=has_test)
    pictures.set_labels(labels.at(part))
    others = [os.path.basename(file) for file in files if file not in tables]
    notes += [f"left out: {first_few(others)}, since there are {kind} and train"] if others else []
    pictures.notes = tuple(notes)
    return pictures


def _path(file: str) -> str:
    """Of a URL what stands behind its protocol."""
    return file.partition("://")[2] if is_url(file) else file


def _open_file(file: str) -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise missing_extra("reading Parquet files", "parquet") from None
    try:
        # Read page by page: as a whole, a row group may be larger than the memory.
        if not is_url(file):
            return pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
        return pq.ParquetFile(as_file(open_stored(file)), buffer_size=AT_ONCE * BLOCK, pre_buffer=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not a Parquet file that can be read: {str(error).splitlines()[0]}") from None


def _image_column(file: str, schema: Any) -> str:
    """The column of pictures: one with a usual name, or the only one that can be. Raises UserError."""
    import pyarrow as pa

    def holds_bytes(field: Any) -> bool:
        kind = field.type
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and holds_bytes(kind.field("bytes"))
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    able = [field.name for field in schema if holds_bytes(field)]
    lower = {name.lower(): name for name in reversed(able)}
    usual = [lower[name] for name in _IMAGES if name in lower]
    if usual or len(able) == 1:
        return (usual or able)[0]
    if len(able) > 1:
        raise UserError(f"{file} has pictures in {', '.join(able)}: call the column of those that are meant 'image'")
    columns = ", ".join(schema.names)
    raise UserError(f"{file} has the columns {columns}; the pictures must be in a column 'image' (encoded, as bytes)")


def _labels(name: str, tables: list[Any], wanted_column: str | None) -> tuple[Labels, list[str]]:
    """Labels of the rows of all files, and what is to be said of their column."""
    import pyarrow as pa

    columns = list(dict.fromkeys(column for table in tables for column in table.schema_arrow.names))
    column, note = label_column(columns, wanted_column, name)
    notes = [note] if note else []
    if column is None:
        return Labels(reason=f"no column of labels among {', '.join(columns)}"), notes
    values: list[Any] = []
    for table in tables:
        present = column in table.schema_arrow.names
        kind = table.schema_arrow.field(column).type if present else None
        if kind is not None and (
            pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        ):
            reason = f"its column '{column}' holds {kind} in a row, and a label is a number or a word"
            return Labels(reason=reason), [*notes, f"labels are not used: {reason}"]
        # The column of labels alone is read; Parquet stores columns apart.
        values += table.read([column]).column(column).to_pylist() if present else [None] * table.metadata.num_rows
    names = next((names for table in tables if (names := class_names(table.schema_arrow.metadata, column))), None)
    labels = number_values(values, names)
    if labels.reason:
        labels = replace(labels, reason=f"of its column '{column}', {labels.reason}")
        notes.append(f"labels are not used: {labels.reason}")
    return labels, notes


def _gather(files: list[str], tables: list[Any], image: str) -> Blobs:
    """The encoded bytes of all rows: in memory when they are few, else in a file made once."""
    columns = [place for place, path in enumerate(_leaves(tables[0])) if path in (image, f"{image}.bytes")]
    # Known from the footer alone, before a byte of pictures is read.
    total = sum(
        table.metadata.row_group(group).column(columns[0]).total_uncompressed_size
        for table in tables
        for group in range(table.num_row_groups)
    )
    if total <= IN_MEMORY:
        return _held(tables, image, total)
    layout = cache_folder() / "parquet" / f"{_identity(files)}.bin"
    ends = layout.with_suffix(".npy")
    if not (layout.exists() and ends.exists()):
        partial = layout.with_suffix(f".{os.getpid()}.part")
        try:
            layout.parent.mkdir(parents=True, exist_ok=True)
            # Ranks and workers of a node start together and would each write gigabytes.
            with open(layout.with_suffix(".lock"), "w") as lock:
                fcntl.lockf(lock, fcntl.LOCK_EX)  # of several processes one lays out, the others find it done
                if not (layout.exists() and ends.exists()):
                    sizes = []
                    with open(partial, "wb") as out:
                        for data, size in _bytes(tables, image):
                            out.write(data)
                            sizes.append(size)
                    np.save(ends, np.cumsum(np.concatenate(sizes)))
                    os.replace(partial, layout)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise UserError(
                f"cannot lay out {total / 1e9:.1f} GB of pictures in {layout.parent} ({error.strerror}): "
                "point XDG_CACHE_HOME at a disk with room"
            ) from None
    return Blobs(np.load(ends), layout)


def _held(tables: list[Any], image: str, total: int) -> Blobs:
    """The bytes of all rows in memory, where `total` are about as many."""
    # A place for all: as pieces that are joined they would lie in memory twice.
    buffer, sizes, end = np.empty(total, np.uint8), [], 0
    for data, size in _bytes(tables, image):
        if end + len(data) > len(buffer):  # equal pictures are stored once
            buffer = np.concatenate([buffer[:end], np.empty(end // 2 + len(data), np.uint8)])
        buffer[end : end + len(data)] = data
        end += len(data)
        sizes.append(size)
    return Blobs(np.cumsum(np.concatenate(sizes)), buffer[:end])


def _leaves(table: Any) -> list[str]:
    return [table.schema.column(place).path for place in range(len(table.schema))]


def _bytes(tables: list[Any], image: str) -> Any:
    """Some rows after the other: all bytes end to end (uint8) and the length of each picture (int64)."""
    import pyarrow as pa

    for table in tables:
        # Of a struct only the bytes: its other field is a path, of no use here.
        leaf = f"{image}.bytes" if f"{image}.bytes" in _leaves(table) else image
        # Few rows at once, on one thread: else whole row groups lie in memory, several times.
        for batch in table.iter_batches(_AT_ONCE, columns=[leaf], use_threads=False):
            rows = batch.column(0)
            if pa.types.is_struct(rows.type):
                rows = rows.field("bytes")
            rows = rows.cast(pa.large_binary()).fill_null(b"")
            ends = np.frombuffer(rows.buffers()[1], np.int64)[rows.offset : rows.offset + len(rows) + 1]
            # Arrow lays the strings of a batch end to end: what becomes the buffer is a copy, no Python bytes.
            data = np.frombuffer(rows.buffers()[2] or b"", np.uint8)
            yield data[ends[0] : ends[-1]], np.diff(ends)


def _identity(files: list[str]) -> str:
    if is_url(files[0]):
        return digest(*((file, *describe(file)) for file in files))
    return digest(*((os.path.abspath(file), os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files))
