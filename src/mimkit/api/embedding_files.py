"""Files of embeddings: vectors enter in pieces, a complete .parquet, .npz or .csv file leaves, and back."""

import csv
import io
import json
import os
import shutil
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from mimkit.core.errors import UserError, missing_extra
from mimkit.core.schema import fit_fields

ENDINGS = (".parquet", ".npz", ".csv")
GROUP = 32 << 20  # bytes of a row group of Parquet
CHUNK = 8192  # paths that are laid out at once
KEY = b"mimkit"  # of Parquet's metadata
Entry = IO[bytes] | io.BufferedIOBase  # a file inside an archive: the first by its stubs, the second in truth


@dataclass(frozen=True, kw_only=True)
class About:
    """Where vectors come from."""

    target: str = ""
    data: str = ""
    pool: str = ""
    """See `evaluate.pools`, or `tokens` of patches."""
    classes: tuple[str, ...] | None = None
    """Names of the labels, when they have names."""

    def json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str | bytes) -> "About":
        return cls(**fit_fields(cls, json.loads(text), "about"))


@dataclass(frozen=True)
class VectorRows:
    """Vectors of some pictures: one a picture, or one a patch with all patches of a picture one after the other."""

    vectors: np.ndarray
    """(N, D) float32."""
    paths: list[str]
    """Of the P pictures."""
    labels: np.ndarray | None = None
    """(P,) int64."""
    places: np.ndarray | None = None
    """(N / P, 2) int64: row and column of the patches of a picture."""

    @property
    def picture(self) -> np.ndarray:
        """(N,) int64: which of the pictures a vector is of."""
        return np.arange(len(self.paths)).repeat(1 if self.places is None else len(self.places))

    @property
    def row_column(self) -> np.ndarray:
        """(N, 2) int64. Only of patches."""
        assert self.places is not None
        return np.tile(self.places, (len(self.paths), 1))


class Writer(ABC):
    """Takes rows piece by piece; holds no more than a piece of them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.about = About()
        """To be set before the first piece."""

    @abstractmethod
    def write(self, rows: VectorRows) -> None:
        """Append a piece."""

    @abstractmethod
    def close(self) -> None:
        """Complete the file."""

    @abstractmethod
    def abandon(self) -> None:
        """Release what is open; the file is removed by the caller."""

    def class_names(self, labels: np.ndarray) -> list[str]:
        """Names of labels, empty for -1. Only of classes with names."""
        assert self.about.classes is not None
        return [self.about.classes[label] if label >= 0 else "" for label in labels.tolist()]


@contextmanager
def open_writer(file: Path) -> Generator[Writer]:
    """A writer of the kind that the ending says; the file is complete or absent at any moment.

    Raises UserError for another ending, a missing extra, or a disk that cannot be written.
    """
    kinds = {".parquet": ParquetWriter, ".npz": NpzWriter, ".csv": CsvWriter}
    kind = kinds.get(file.suffix.lower())
    if kind is None:
        raise UserError(f"{file} must end in one of {', '.join(ENDINGS)}: that says what to write")
    if not file.parent.is_dir():
        raise UserError(f"cannot write {file} (there is no folder {file.parent}): name another file")
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        writer = kind(partial)
        try:
            yield writer
            writer.close()
        except BaseException:
            writer.abandon()
            raise
        os.replace(partial, file)
    except OSError as error:
        raise UserError(f"cannot write {file} ({error.strerror or error}): name another file") from error
    finally:
        partial.unlink(missing_ok=True)


class ParquetWriter(Writer):
    """Columns path, label and class where there are labels, row and column of patches, and vector (D float32)."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise missing_extra("writing Parquet files", "parquet") from None
        self._arrow, self._parquet = pyarrow, pyarrow.parquet
        self._writer: Any = None
        self._tables: list[Any] = []

    def write(self, rows: VectorRows) -> None:
        arrow = self._arrow
        flat = arrow.array(np.ascontiguousarray(rows.vectors).reshape(-1))
        columns: dict[str, Any] = {"path": arrow.array([_unicode(path) for path in rows.paths]).take(rows.picture)}
        if rows.labels is not None:
            columns["label"] = arrow.array(rows.labels).take(rows.picture)
            if self.about.classes:
                columns["class"] = arrow.array(self.class_names(rows.labels)).take(rows.picture)
        if rows.places is not None:
            row, column = rows.row_column.T
            columns |= {"row": arrow.array(row.astype(np.int32)), "column": arrow.array(column.astype(np.int32))}
        columns["vector"] = arrow.FixedSizeListArray.from_arrays(flat, rows.vectors.shape[1])
        table = arrow.table(columns)
        if self._writer is None:
            schema = table.schema.with_metadata({KEY: self.about.json().encode()})
            self._writer = self._parquet.ParquetWriter(self.file, schema, use_dictionary=["path", "class"])
        self._tables.append(table)
        if sum(table.nbytes for table in self._tables) >= GROUP:
            self._flush()

    def _flush(self) -> None:
        """The pieces so far become a row group."""
        if self._tables:
            self._writer.write_table(self._arrow.concat_tables(self._tables).combine_chunks())
        self._tables = []

    def close(self) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()

    def abandon(self) -> None:
        if self._writer is not None:
            self._writer.close()


class CsvWriter(Writer):
    """A line a vector: path, label and class where there are labels, row and column of patches, then the numbers."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self._file = open(file, "w", encoding="utf-8", errors="backslashreplace", newline="")  # noqa: SIM115
        self._lines = csv.writer(self._file)
        self._begun = False

    def write(self, rows: VectorRows) -> None:
        labels, names = rows.labels, None
        if labels is not None and self.about.classes:
            names = self.class_names(labels)
        if not self._begun:
            heads = ["path", *(["label"] if labels is not None else []), *(["class"] if names else [])]
            heads += ["row", "column"] if rows.places is not None else []
            self._lines.writerow([*heads, *(f"v{number}" for number in range(rows.vectors.shape[1]))])
            self._begun = True
        places = None if rows.places is None else rows.row_column.tolist()
        for number, (picture, vector) in enumerate(zip(rows.picture.tolist(), rows.vectors.tolist(), strict=True)):
            cells: list[Any] = [rows.paths[picture]]
            cells += [int(labels[picture])] if labels is not None else []
            cells += [names[picture]] if names else []
            cells += places[number] if places is not None else []
            self._lines.writerow([*cells, *(f"{value:.9g}" for value in vector)])  # 9 digits give float32 back

    def close(self) -> None:
        self._file.close()

    def abandon(self) -> None:
        self._file.close()


class NpzWriter(Writer):
    """Arrays vectors (N, D), paths (P), labels (P), classes, about (JSON); of patches picture, row, column (N)."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self._spools: dict[str, _Spool] = {}
        self._paths: IO[str] = tempfile.TemporaryFile("w+", dir=file.parent, encoding="utf-8")  # noqa: SIM115
        self._count, self._longest = 0, 1

    def write(self, rows: VectorRows) -> None:
        columns: dict[str, np.ndarray] = {"vectors": rows.vectors}
        if rows.labels is not None:
            columns["labels"] = rows.labels.astype(np.int64)
        if rows.places is not None:
            row, column = rows.row_column.T.astype(np.int32)
            columns |= {"picture": self._count + rows.picture, "row": row, "column": column}
        for name, values in columns.items():
            if name not in self._spools:
                self._spools[name] = _Spool(values, self.file.parent)
            self._spools[name].append(values)
        self._paths.writelines(json.dumps(path) + "\n" for path in rows.paths)
        self._count += len(rows.paths)
        self._longest = max(self._longest, *map(len, rows.paths))

    def close(self) -> None:
        with zipfile.ZipFile(self.file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, spool in self._spools.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    spool.copy(entry)
            with archive.open("paths.npy", "w", force_zip64=True) as entry:
                self._copy_paths(entry)
            extra = {"about": np.array(self.about.json())}
            if self.about.classes:
                extra["classes"] = np.array(self.about.classes)
            for name, array in extra.items():
                with archive.open(f"{name}.npy", "w") as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)
        self.abandon()

    def _copy_paths(self, entry: Entry) -> None:
        """Paths as an array of strings of one length, laid out piece by piece."""
        kind = np.dtype(f"<U{self._longest}")
        _write_header(entry, kind, (self._count,))
        self._paths.seek(0)
        lines = iter(self._paths)
        while piece := [json.loads(line) for line in islice(lines, CHUNK)]:
            entry.write(np.array(piece, kind).tobytes())

    def abandon(self) -> None:
        self._paths.close()
        for spool in self._spools.values():
            spool.file.close()


class _Spool:
    """A column whose length nobody knows yet, in a temporary file."""

    def __init__(self, values: np.ndarray, folder: Path) -> None:
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._kind, self._shape, self._rows = values.dtype, values.shape[1:], 0

    def append(self, values: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(values).data)
        self._rows += len(values)

    def copy(self, entry: Entry) -> None:
        """The whole column as a .npy."""
        _write_header(entry, self._kind, (self._rows, *self._shape))
        self.file.seek(0)
        shutil.copyfileobj(self.file, entry, 1 << 20)


def _write_header(entry: Entry, kind: np.dtype, shape: tuple[int, ...]) -> None:
    about = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(entry, about)


def _unicode(text: str) -> str:
    """A path that is no valid Unicode, with its odd bytes spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


def read_vectors(file: Path) -> tuple[VectorRows, About]:
    """A file of vectors of pictures, whole. Raises UserError for one that cannot be read, and for one of patches."""
    readers = {".parquet": _read_parquet, ".npz": _read_npz, ".csv": _read_csv}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise UserError(f"{file} must end in one of {', '.join(ENDINGS)}")
    try:
        rows, about = reader(file)
    except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{file} cannot be read as embeddings ({reason})") from error
    if about.pool == "tokens":
        raise UserError(f"{file} holds vectors of patches: read it with pyarrow, pandas or numpy")
    return rows, about


def _read_parquet(file: Path) -> tuple[VectorRows, About]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise missing_extra("reading Parquet files", "parquet") from None
    table = parquet.read_table(file)
    about = About.read((table.schema.metadata or {}).get(KEY, About().json().encode()))
    vectors = table["vector"].combine_chunks()
    flat = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(vectors), -1)
    labels = table["label"].to_numpy() if "label" in table.column_names else None
    return VectorRows(flat, table["path"].to_pylist(), labels), about


def _read_npz(file: Path) -> tuple[VectorRows, About]:
    with np.load(file, allow_pickle=False) as arrays:
        labels = arrays["labels"] if "labels" in arrays.files else None
        return VectorRows(arrays["vectors"], arrays["paths"].tolist(), labels), About.read(str(arrays["about"]))


def _read_csv(file: Path) -> tuple[VectorRows, About]:
    with open(file, encoding="utf-8", newline="") as stream:
        lines = csv.reader(stream)
        heads = next(lines, [])
        first = heads.index("v0")
        paths, labels, vectors = [], [], []
        names: dict[int, str] = {}
        for line in lines:
            paths.append(line[0])
            vectors.append(np.array(line[first:], np.float32))
            if "label" in heads:
                labels.append(int(line[heads.index("label")]))
            if "class" in heads:
                names[labels[-1]] = line[heads.index("class")]
    classes = tuple(names.get(number, "") for number in range(max(names) + 1)) if names else None
    rows = VectorRows(np.stack(vectors), paths, np.array(labels, np.int64) if labels else None)
    return rows, About(pool="tokens" if "row" in heads else "", classes=classes)
