"""Names of classes: a file beside the masks enters; which number or color has which name leaves."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mimkit.core.errors import UserError
from mimkit.core.files import read_regular
from mimkit.data.tables import text_of

FILES = (
    *("classes.txt", "labels.txt", "class_names.txt", "names.txt", "objectInfo150.txt", "label_colors.txt"),
    *("class_dict.csv", "classes.json", "labels.json", "id2label.json", "class_names.json"),
    *("data.yaml", "dataset.yaml", "obj.names"),
)
"""Files that name classes, in the order in which they are looked for."""
UNNAMED = frozenset({"void", "unlabeled", "unlabelled", "ignore", "ignored", "other", "none", "unknown"})
"""Names of pixels that have no class."""
LARGEST = 2**31  # numbers of classes are below
_NUMBERED = re.compile(r"([0-9]{1,9})\s*[\s:,;=]\s*(\S.*)")
_SHADES = r"([0-9]{1,3})[\s,;]+([0-9]{1,3})[\s,;]+([0-9]{1,3})"
_COLORED = re.compile(rf"{_SHADES}[\s,;]+(\S.*)|(\S.*?)[\s,;]+{_SHADES}")


@dataclass(frozen=True)
class Names:
    """What a file of names says, in one of three ways."""

    file: Path
    by_id: dict[int, str] = field(default_factory=dict)
    """Of numbers that the file gives."""
    listed: tuple[str, ...] = ()
    """Names alone, in order."""
    by_color: dict[int, str] = field(default_factory=dict)
    """Of packed colors, see `maps.packed`."""

    def of_ids(self, zero_is_void: bool) -> dict[int, str]:
        """Names by number. A bare list begins with that of 0, or of 1 where 0 is void and the list does not name it."""
        if self.by_id or not self.listed:
            return self.by_id
        first = 1 if zero_is_void and self.listed[0].lower() not in UNNAMED | {"background"} else 0
        return dict(enumerate(self.listed, first))


def find_names(folders: Iterable[Path]) -> Names | None:
    """The names in the first of these folders that has a file of them. Raises UserError for one that is none."""
    for folder in folders:
        for name in FILES:
            if (folder / name).is_file():
                return read_names(folder / name)
    return None


def read_names(file: Path) -> Names:
    """The names in a file. Raises UserError."""
    try:
        text = text_of(read_regular(file))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    if file.suffix in (".json", ".yaml"):
        return _of_json(text, file)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise UserError(f"{file} is empty: write a name of a class a line, or remove it")
    if lines[0].split("\t")[0] == "Idx":  # ADE20K's own table
        rows = [line.split("\t") for line in lines[1:]]
        return Names(file, by_id={int(row[0]): row[-1] for row in rows if re.fullmatch("[0-9]{1,9}", row[0])})
    if colors := [match for line in lines if (match := _COLORED.fullmatch(line))]:
        if len(colors) < len(lines) - 1:  # but for a line of columns
            raise UserError(f"{file} has colors in {len(colors)} of {len(lines)} lines: write R G B NAME a line")
        return Names(file, by_color=dict(_color(match) for match in colors))
    numbered = [match for line in lines if (match := _NUMBERED.fullmatch(line))]
    if len(numbered) == len(lines):
        return Names(file, by_id={int(match[1]): match[2] for match in numbered})
    return Names(file, listed=tuple(lines))


def _color(match: re.Match[str]) -> tuple[int, str]:
    cells = match.groups()
    red, green, blue, name = cells[:4] if cells[3] else (*cells[5:8], cells[4])
    return (int(red) << 16) | (int(green) << 8) | int(blue), name.strip().strip(",;").strip()


def _of_json(text: str, file: Path) -> Names:
    try:
        data = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file} is no {file.suffix[1:].upper()} ({reason}): write a list of names") from None
    for key in ("classes", "categories", "names", "labels", "id2label"):
        if isinstance(data, dict) and isinstance(data.get(key), (list, dict)):
            data = data[key]
            break
    if isinstance(data, list) and data and all(isinstance(name, str) for name in data):
        return Names(file, listed=tuple(data))
    by_id = _of_objects(data) if isinstance(data, list) else _of_object(data)
    if not by_id:
        raise UserError(f'{file} names no classes: write ["sky", "road", ...] or {{"0": "sky", "1": "road", ...}}')
    return Names(file, by_id=by_id)


def _of_objects(rows: list[Any]) -> dict[int, str]:
    by_id = {}
    for row in rows:
        row = row if isinstance(row, dict) else {}
        number = next((row[key] for key in ("id", "index", "value") if _is_id(row.get(key))), None)
        if number is None or not isinstance(row.get("name"), str):
            return {}
        by_id[number] = row["name"]
    return by_id


def _of_object(data: Any) -> dict[int, str]:
    if not isinstance(data, dict):
        return {}
    data = {str(key): value for key, value in data.items()}  # numbers, in YAML
    if all(re.fullmatch("[0-9]{1,9}", key) and isinstance(name, str) for key, name in data.items()):
        return {int(key): name for key, name in data.items()}
    if all(_is_id(number) for number in data.values()):
        return {number: name for name, number in data.items()}
    return {}


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST
