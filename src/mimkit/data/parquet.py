"""Parquet files with encoded pictures and labels, as Hugging Face writes them, enter, Pictures leave."""

import fcntl
import itertools
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mimkit.core.errors import UserError, missing_extra
from mimkit.data.folders import cache_folder
from mimkit.data.pictures import Encoded, Pictures, Split, digest, split_by_address
from mimkit.data.reading import Reading

_IMAGES, _LABELS = ("image", "img"), ("label", "labels", "fine_label")
_SPLIT = re.compile(r"(train|val|valid|validation|test)(-.*)?$")
_TEST_ORDER = ("val", "valid", "validation", "test")
IN_MEMORY = 2 << 30  # bytes; more is laid out once in a cache file and mapped, for random access without decompression


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
        files: list[Path],
        blobs: Blobs,
        rows: list[int],
        *,
        reading: Reading,
        labels: Tensor | None,
        classes: tuple[str, ...] | None,
        has_test: bool,
    ) -> None:
        self.name, self._files, self._blobs, self._ends = name, files, blobs, list(itertools.accumulate(rows))
        self.reading = reading
        self.labels, self.classes, self.has_test = labels, classes, has_test

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
    """The Parquet files of a folder, or of its `data` folder, in order."""
    return sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))


def open_parquet(name: str, files: list[Path], split: Split, reading: Reading) -> Pictures:
    """The pictures of Parquet files; `train-*`, `val*-*` and `test-*` among the names are splits.

    Columns: `image` (struct of `bytes` and `path`, or binary) and optionally `label` (integers or strings).
    """
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise missing_extra("reading Parquet files", "parquet") from None
    groups: dict[str, list[Path]] = {}
    for file in files:
        if match := _SPLIT.match(file.stem):
            groups.setdefault(match[1], []).append(file)
    test = next((groups[kind] for kind in _TEST_ORDER if kind in groups), [])
    has_test = bool(test) and "train" in groups
    used = test if has_test and split == "test" else groups.get("train", files)
    tables = []
    for file in used:
        try:
            tables.append(pq.ParquetFile(file))
        except (OSError, ValueError) as error:
            raise UserError(f"{file} is not a Parquet file that can be read: {str(error).splitlines()[0]}") from None
    schema = tables[0].schema_arrow
    image = next((column for column in _IMAGES if column in schema.names), None)
    if image is None:
        raise UserError(
            f"{used[0]} has the columns {', '.join(schema.names)}; the pictures must be in a column 'image'"
        )
    labels, classes = _labels(tables, next((column for column in _LABELS if column in schema.names), None))
    rows = [table.metadata.num_rows for table in tables]
    if not sum(rows):
        raise UserError(f"{name} holds no rows")
    pictures = Rows(
        name,
        [Path(os.path.abspath(file)) for file in used],
        _gather(used, tables, image),
        rows,
        reading=reading,
        labels=labels,
        classes=classes,
        has_test=has_test,
    )
    return pictures if has_test else split_by_address(pictures, split)


def _labels(tables: list[Any], column: str | None) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Labels and, from strings or Hugging Face's notes in the schema, their names."""
    if column is None:
        return None, None
    # The column of labels alone is read; Parquet stores columns apart.
    values = [value for table in tables for value in table.read([column]).column(column).to_pylist()]
    if any(value is None for value in values):
        return None, None
    if all(isinstance(value, str) for value in values):
        names = sorted(set(values))
        number = {name: i for i, name in enumerate(names)}
        return torch.tensor([number[value] for value in values]), tuple(names)
    if not all(isinstance(value, int) for value in values):
        return None, None
    # Names of classes are in no column; `datasets` keeps them in the schema.
    notes = json.loads((tables[0].schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
    names = notes.get("info", {}).get("features", {}).get(column, {}).get("names")
    return torch.tensor(values), tuple(names) if names else None


def _gather(files: list[Path], tables: list[Any], image: str) -> Blobs:
    """The encoded bytes of all rows: in memory when they are few, else in a file made once."""
    columns = [place for place, path in enumerate(_leaves(tables[0])) if path in (image, f"{image}.bytes")]
    if not columns:
        raise UserError(f"{files[0]}: column '{image}' holds no encoded pictures (bytes)")
    # Known from the footer alone, before a byte of pictures is read.
    total = sum(
        table.metadata.row_group(group).column(columns[0]).total_uncompressed_size
        for table in tables
        for group in range(table.num_row_groups)
    )
    if total <= IN_MEMORY:
        parts = list(_bytes(tables, image))
        buffer = np.concatenate([data for data, _ in parts])
        return Blobs(np.cumsum(np.concatenate([sizes for _, sizes in parts])), buffer)
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


def _leaves(table: Any) -> list[str]:
    return [table.schema.column(place).path for place in range(len(table.schema))]


def _bytes(tables: list[Any], image: str) -> Any:
    """Row group by row group: all bytes end to end (uint8) and the length of each picture (int64)."""
    import pyarrow as pa

    for table in tables:
        # Of a struct only the bytes: its other field is a path, of no use here.
        leaf = f"{image}.bytes" if f"{image}.bytes" in _leaves(table) else image
        for group in range(table.num_row_groups):
            column = table.read_row_group(group, columns=[leaf]).column(image).combine_chunks()
            for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
                if pa.types.is_struct(chunk.type):
                    chunk = chunk.field("bytes")
                chunk = chunk.cast(pa.large_binary()).fill_null(b"")
                ends = np.frombuffer(chunk.buffers()[1], np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
                # Arrow lays the strings of a chunk end to end: what becomes the buffer is a copy, no Python bytes.
                data = np.frombuffer(chunk.buffers()[2] or b"", np.uint8)
                yield data[ends[0] : ends[-1]], np.diff(ends)


def _identity(files: list[Path]) -> str:
    return digest(*((os.path.abspath(file), os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files))
