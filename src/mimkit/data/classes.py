"""Classes: label values of any kind enter; numbers 0..K-1, -1 without a label, the classes' names and doubts leave."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from mimkit.core.errors import UserError

UNLABELED = -1
COLUMNS = (
    *("label", "labels", "fine_label", "class", "classes", "category", "target", "cls", "class_name", "category_name"),
    *("label_name", "class_label", "class_id", "label_id", "category_id"),
)
"""Names of columns of labels, in the order in which they are looked for, capitals aside."""
BLANKS = frozenset({"", "-1", "None", "null", "NULL", "nan", "NaN"})
"""Words of a text that stand for no label; a class may well be called `none`."""
FIX = (
    "put the pictures of each class into a folder of its own (DATA/cat/1.jpg, DATA/dog/2.jpg), or give a list of paths "
    "with a tab and a label a line"
)
_INTEGER = re.compile(r"[+-]?[0-9]+")
_REAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_FEW = 10  # different numbers up to which a column may hold classes, however few rows there are


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What is known of the labels of a set, over all its splits."""

    numbers: Int64[Tensor, " n"] | None = None
    """One a picture, -1 without a label; None where no picture has one."""
    classes: tuple[str, ...] | None = None
    """Names, by number."""
    named: bool = False
    """Whether names mean the same in other sources: words do, bare numbers do not."""
    reason: str = ""
    """Why there are none."""

    def at(self, index: Any) -> "Labels":
        """Of some of the pictures, with the classes of all."""
        return self if self.numbers is None else replace(self, numbers=self.numbers[index])


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once: numbers by their value and before words, so that 2 comes before 10; words by the alphabet."""
    return tuple(
        sorted(set(names), key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
    )


def number_values(values: Sequence[Any], names: Sequence[str] | None = None) -> Labels:
    """Labels of any values that a column may hold: integers, integral floats, booleans, words, and nothing.

    None, NaN, blank words and negative integers are no label. Classes are numbered by the values that occur, of all
    splits together; `names` are those of the integers 0, 1, ... and are all classes then.
    """
    try:
        cells = [_cell(value) for value in values]
    except _NoLabelError as error:
        return Labels(reason=str(error))
    present = {cell for cell in cells if cell is not None}
    if not present:
        return Labels(reason=f"all {len(values):,} labels are empty (blank, null, NaN or below 0)" if values else "")
    floats = sum(isinstance(value, float) for value in values)
    if floats and len(present) > max(_FEW, len(values) / 2):
        return Labels(reason=f"{len(present):,} different numbers in {len(values):,} rows measure something")
    whole = {cell for cell in present if isinstance(cell, int)}
    if names and whole == present:
        if max(whole) >= len(names):
            return Labels(reason=f"label {max(whole)} has no name among the {len(names)} that the file gives")
        numbered = torch.tensor([UNLABELED if cell is None else cell for cell in cells])
        return Labels(numbers=numbered, classes=tuple(names), named=True)
    texts = [None if cell is None else str(cell) for cell in cells]
    return number_names(texts, named=not whole)


def number_texts(texts: Sequence[str | None]) -> Labels:
    """Labels of words out of a text, where numbers are words too: names are kept as they are spelled."""
    cells = [None if text is None or text.strip() in BLANKS else text.strip() for text in texts]
    present = {cell for cell in cells if cell is not None}
    decimal = all(cell.isdecimal() for cell in present)
    if not decimal and all(_REAL.fullmatch(cell) for cell in present):
        # 1.0, -2, 1e3: read as numbers, which may be classes, or something measured.
        return number_values([None if cell is None else _number(cell) for cell in cells])
    if not present:
        return Labels(reason=f"all {len(texts):,} labels are empty (blank, null, NaN or below 0)" if texts else "")
    return number_names(cells, named=not decimal)


def number_names(texts: Sequence[str | None], *, named: bool) -> Labels:
    """Labels of names; None is no label. At least one is a name."""
    classes = in_order(text for text in texts if text is not None)
    number = {name: i for i, name in enumerate(classes)}
    numbered = torch.tensor([UNLABELED if text is None else number[text] for text in texts])
    return Labels(numbers=numbered, classes=classes, named=named)


def label_column(columns: Sequence[str], named: str | None, source: object) -> tuple[str | None, str]:
    """The column of labels, and a note where there were several candidates.

    Raises UserError when a person named one that is not there.
    """
    if named is not None:
        if named not in columns:
            raise UserError(f"{source} has no column '{named}' for --label-column: it has {', '.join(columns)}")
        return named, ""
    lower = {column.lower(): column for column in reversed(columns)}
    candidates = [lower[name] for name in COLUMNS if name in lower]
    if len(candidates) < 2:
        return (candidates or [None])[0], ""
    others = ", ".join(candidates[1:])
    note = f"labels are those of the column '{candidates[0]}' of {source}; --label-column takes another ({others})"
    return candidates[0], note


class _NoLabelError(Exception):
    """A value that cannot be a label; the message says why."""


def _cell(value: Any) -> int | str | None:
    """A value as an integer or a word; None where it is no label."""
    if value is None:
        return None
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, (int, np.integer, np.bool_)):
        return int(value) if value >= 0 else None
    if isinstance(value, (float, np.floating)):
        if math.isnan(value):
            return None
        if not float(value).is_integer():
            raise _NoLabelError(f"{value:g} is no whole number")
        return int(value) if value >= 0 else None
    kind = {list: "a list", dict: "a group of values", bytes: "bytes"}.get(type(value), f"a {type(value).__name__}")
    raise _NoLabelError(f"a label is a number or a word, not {kind}")


def _number(text: str) -> int | float:
    return int(text) if _INTEGER.fullmatch(text) else float(text)
