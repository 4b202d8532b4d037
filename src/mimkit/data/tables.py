"""Tables of pictures: the bytes of a CSV, TSV, JSON lines or Parquet file enter; its columns leave."""

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mimkit.core.errors import UserError, missing_extra
from mimkit.data.classes import Labels, label_column, number_texts, number_values
from mimkit.data.layout import Layout
from mimkit.data.reading import Reading

PATHS = (
    *("file_name", "filename", "file", "path", "filepath", "file_path", "image_path", "img_path", "image", "img"),
    *("image_file", "image_name", "picture", "photo", "fname", "name"),
)
"""Names of columns of paths, in the order in which they are looked for, capitals aside."""
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""What Hugging Face's image folders keep their labels in."""
Columns = dict[str, list[Any]]
_BOMS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


def text_of(data: bytes) -> str:
    """The text of a file, as Excel or Notepad save it too; bytes that are no UTF-8 stay what they are in a path."""
    encoding = next((name for mark, name in _BOMS if data.startswith(mark)), None)
    if encoding is not None:
        return data.decode(encoding, errors="replace")
    return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="surrogateescape")


def read_json_lines(text: str, source: object) -> Columns:
    """The columns of JSON lines; an entry that a line lacks is None. Raises UserError."""
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{source} line {number} is no JSON ({error}): write one object a line") from None
        if not isinstance(row, dict):
            raise UserError(f'{source} line {number} is no object: write {{"file_name": "1.jpg", "label": "cat"}}')
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}


def read_separated(text: str, delimiter: str, source: object) -> Columns:
    """The columns of a CSV file whose first line names them; a cell that a line lacks is empty. Raises UserError."""
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(row)]
    except csv.Error as error:
        raise UserError(f"{source} is no CSV that can be read ({error}): save it again") from None
    if not rows:
        raise UserError(f"{source} is empty: write a line of names, path,label, and a line a picture")
    names = [name.strip() for name in rows[0]]
    longest = max(map(len, rows))
    if longest > len(names):
        number = next(number for number, row in enumerate(rows, 1) if len(row) == longest)
        raise UserError(f"{source} row {number} has {longest} cells for {len(names)} columns: quote cells with commas")
    return {name: [row[place] if place < len(row) else "" for row in rows[1:]] for place, name in enumerate(names)}


def read_parquet_columns(data: bytes, source: object) -> tuple[Columns, dict[str, list[str]]]:
    """The columns of a small Parquet file, and names of classes where Hugging Face notes some. Raises UserError."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise missing_extra("reading Parquet files", "parquet") from None
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (OSError, ValueError) as error:
        raise UserError(f"{source} is not a Parquet file that can be read: {str(error).splitlines()[0]}") from None
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    return columns, {name: names for name in columns if (names := class_names(table.schema.metadata, name))}


def class_names(notes: dict[bytes, bytes] | None, column: str) -> list[str] | None:
    """Names of the classes of a column, which are in none: `datasets` notes them in the schema of a Parquet file."""
    try:
        features = json.loads((notes or {}).get(b"huggingface", b"{}"))["info"]["features"]
        names = features[column]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return [str(name) for name in names] if isinstance(names, list) and names else None


def path_column(columns: Sequence[str], source: object) -> str:
    """The column of paths. Raises UserError when there is none."""
    lower = {column.lower(): column for column in reversed(columns)}
    column = next((lower[name] for name in PATHS if name in lower), None)
    if column is None:
        raise UserError(f"{source} has the columns {', '.join(columns)}; paths must be in a column 'path'")
    return column


def delimiter_of(line: str) -> str:
    """What stands between the cells of a line: a tab, a comma, a semicolon or a space, whichever there is first."""
    return next((mark for mark in "\t,;" if mark in line), " ")


def is_header(line: str, is_picture: Callable[[str], bool]) -> bool:
    """Whether a line names columns, one of them that of paths, and is no path itself."""
    cells = [cell.strip().strip('"').lower() for cell in re.split(re.escape(delimiter_of(line)), line)]
    return any(cell in PATHS for cell in cells) and not any(is_picture(cell) for cell in cells)


def labeled_layout(
    layout: Layout, paths: Sequence[bytes], read: Callable[[bytes], bytes | None], reading: Reading, name: object
) -> tuple[Layout, list[str]]:
    """The layout of a folder or an archive with the labels of its metadata files, if it has some, and notes on them.

    Args:
        paths, read: of the pictures, and the bytes of a file by its path, None where there is none.
        name: of the folder, for messages.

    Raises UserError, also for a named column of labels where no file has columns.
    """
    used = [paths[number] for number in (*layout.train, *layout.test)]
    folders = [b"", layout.train_folder, layout.test_folder]
    labels, notes = metadata_labels(read, folders, used, reading.label_column)
    if labels is not None:
        return replace(layout, labels=labels), notes
    if reading.label_column is not None:
        raise UserError(f"{name} has no columns for --label-column: tables, lists and metadata files have")
    return layout, notes


def metadata_labels(
    read: Callable[[bytes], bytes | None], folders: Sequence[bytes], paths: Sequence[bytes], column: str | None
) -> tuple[Labels | None, list[str]]:
    """Labels of pictures by `metadata.csv`, `.jsonl` or `.parquet`, and what is to be said of them.

    Args:
        read: the bytes of a file by its path, None where there is none.
        folders: where such files may lie, each empty or with a `/` at its end; they name files from there.
        paths: of the pictures whose labels are wanted.
        column: of the labels, as a person named it.

    Returns None where no such file has labels. Raises UserError.
    """
    cells: dict[bytes, Any] = {}
    notes: list[str] = []
    names, of_text, lacking = None, True, ""
    for place in [folder + name.encode() for folder in dict.fromkeys(folders) for name in METADATA]:
        data, source = read(place), place.decode(errors="replace")
        if data is None:
            continue
        columns, all_names = _columns(data, source)
        labels, note = label_column(list(columns), column, source)
        if labels is None:
            lacking = f"{source} has no column of labels among {', '.join(columns)}"
            continue
        notes += [note] if note else []
        names = names or all_names.get(labels)
        of_text = of_text and source.endswith(".csv")
        folder = place.rpartition(b"/")[0] + b"/" if b"/" in place else b""
        for path, label in zip(columns[path_column(list(columns), source)], columns[labels], strict=True):
            cells[folder + str(path).replace("\\", "/").encode("utf-8", "surrogateescape")] = label
    if not cells:
        return None, [f"labels come from folders: {lacking}"] if lacking else []
    values = [cells.get(path) for path in paths]
    named = sum(path in cells for path in paths)
    if not named:
        return None, [*notes, "the metadata names none of these pictures: it is not used"]
    return number_texts(values) if of_text else number_values(values, names), notes


def _columns(data: bytes, source: str) -> tuple[Columns, dict[str, list[str]]]:
    if source.endswith(".parquet"):
        return read_parquet_columns(data, source)
    text = text_of(data)
    if not text.strip():
        raise UserError(f"{source} is empty: write file_name,label and a line a picture, or remove it")
    if source.endswith(".jsonl"):
        return read_json_lines(text, source), {}
    return read_separated(text, delimiter_of(text.splitlines()[0]), source), {}
