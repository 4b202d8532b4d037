"""Lists of pictures: a text file of paths, with labels or without, enters; Pictures leave."""

import csv
import os
import re
from pathlib import Path

from mimkit.core.errors import UserError
from mimkit.core.files import refuse_no_name
from mimkit.core.urls import is_url, withhold_each
from mimkit.data.bucket import Links
from mimkit.data.classes import Labels, label_column, number_texts, number_values
from mimkit.data.folders import ENDINGS, Files, Paths
from mimkit.data.pictures import Pictures
from mimkit.data.reading import Reading
from mimkit.data.stored import absolute, open_stored
from mimkit.data.tables import (
    delimiter_of,
    is_header,
    path_column,
    read_json_lines,
    read_separated,
    text_of,
)

KINDS = (".txt", ".lst", ".tsv", ".csv", ".jsonl")
_KINDS = "|".join(ending[1:] for ending in sorted(ENDINGS))
# The last ending with something behind it: paths may have spaces and commas in them, and so may labels.
_PATH_AND_LABEL = re.compile(rf"(.*\.(?:{_KINDS}))(?:\s*[,;]\s*|\s+)(\S.*)", re.IGNORECASE)
_QUOTED = re.compile(r'"(?:[^"]|"")*"\s*(?:([,; ]).*)?')


def open_list(file: Path | str, reading: Reading) -> Pictures:
    """A text file with a path a line, relative to the file's folder, or a URL, and labels of all, some or none.

    Between path and label stands a tab, comma, semicolon or space. A first line may name columns, of which one has
    paths and one may have labels; `.jsonl` has an object a line. Raises UserError.
    """
    stored = open_stored(str(file))
    folder, ending = os.path.dirname(file) or ".", os.path.splitext(file)[1].lower()
    text = text_of(stored.read(0, stored.size))
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{file} is empty: write one path of a picture a line, relative to {folder}")
    note = ""
    if ending == ".jsonl" or is_header(lines[0], _is_picture):
        table = ending == ".jsonl"
        columns = read_json_lines(text, file) if table else read_separated(text, delimiter_of(lines[0]), file)
        column, note = label_column(list(columns), reading.label_column, file)
        names = [str(path) for path in columns[path_column(list(columns), file)]]
        values = columns[column] if column else []
        labels = number_values(values) if table else number_texts(values)
        if column is None:
            labels = Labels(reason=f"it has no column of labels among {', '.join(columns)}")
    elif reading.label_column:
        raise UserError(f"{file} has no first line that names columns: --label-column needs one")
    else:
        pairs = [_path_and_label(line) for line in lines]
        names = [path for path, _ in pairs]
        labels = number_texts([label for _, label in pairs])
        if all(label is None for _, label in pairs):
            labels = Labels(reason="its lines name none")
    if not names:
        raise UserError(f"{file} names no picture below its first line: write a path a line, relative to {folder}")
    for name in names:
        refuse_no_name(name)
    # Absolute, since workers and later commands may stand in another folder; links are kept as they are named.
    root = absolute(folder)
    if is_url(root) or is_url(names[0]):
        pictures = Links(str(file), root, Paths.pack([os.fsencode(name) for name in withhold_each(names)]), reading)
    else:
        names = _existing(names, Path(root), Path(file))
        pictures = Files(str(file), Path(root), Paths.pack([os.fsencode(name) for name in names]), reading=reading)
    pictures.set_labels(labels)
    pictures.notes = (note,) if note else ()
    return pictures


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in ENDINGS


def _path_and_label(line: str) -> tuple[str, str | None]:
    """The path of a line, and its label where there is one."""
    path, tab, label = line.partition("\t")
    if tab:
        return path.strip(), label.strip()
    if quoted := _QUOTED.fullmatch(line.strip()):
        cells = next(csv.reader([line.strip()], delimiter=quoted[1] or ",", skipinitialspace=True))
        return cells[0], " ".join(cells[1:]).strip() or None
    if _is_picture(line.strip()):
        return line.strip(), None
    if match := _PATH_AND_LABEL.fullmatch(line.strip()):
        return match[1], match[2].strip()
    return line.strip().rstrip(",;"), None


def _existing(names: list[str], root: Path, file: Path) -> list[str]:
    """The paths, with `/` where the first one says `\\` and is a file only so. Raises UserError when it is no file."""

    def is_there(name: str) -> bool:
        return os.path.lexists(os.path.join(os.fsencode(root), os.fsencode(name)))

    if is_there(names[0]):
        return names
    turned = names[0].replace("\\", "/")
    if turned != names[0] and is_there(turned):
        return [name.replace("\\", "/") for name in names]
    fix = (
        "; name the columns path,label in a first line, or put a tab before labels"
        if re.search("[ ,;]", turned)
        else ""
    )
    raise UserError(f"{file} line 1: there is no file {names[0]} (paths are relative to {root}){fix}")
