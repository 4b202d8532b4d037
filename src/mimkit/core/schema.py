"""Schemas: JSON and an annotation enter; the value as annotated leaves, or a line that says what was expected where.

Annotations are those of dataclasses and TypedDicts: numbers, texts, Literal, tuple, list, dict, unions, and
`Annotated[int, Range(1)]` for what has bounds.
"""

import json
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from mimkit.core.errors import UserError

DEEPEST = 64  # levels of a JSON file
LARGEST = 2**63  # whole numbers are below: more fits into no tensor
WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}


class Misfit(UserError):
    """A value that is not what its place asks for."""


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both included."""

    least: float
    most: float | None = None

    def __str__(self) -> str:
        return f"of at least {self.least:g}" if self.most is None else f"between {self.least:g} and {self.most:g}"


Count = Annotated[int, Range(0)]
Positive = Annotated[int, Range(1)]
Fraction = Annotated[float, Range(0, 1)]
Build = Callable[[Any, type, str], Any]
"""Makes an object of a class of its JSON in a place."""


def misfit(place: str, expected: str, value: Any) -> Misfit:
    """The error for a value in a place."""
    text = json.dumps(value, default=str)
    return Misfit(f"{place or 'the whole'}: expected {expected}, got {text if len(text) < 60 else text[:56] + ' ...'}")


def plain(value: Any, place: str = "", depth: int = 0) -> Any:
    """The same JSON. Raises Misfit where it is too deep, and for numbers and texts that nothing can hold."""
    if depth > DEEPEST:
        raise Misfit(f"{place[:60]} ...: expected at most {DEEPEST} levels, got more")
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            plain(key, place, depth)
            plain(item, inside(place, key), depth + 1)
    elif isinstance(value, int) and not -LARGEST <= value < LARGEST:
        raise Misfit(f"{place}: expected a number below 2^63, got one of {value.bit_length()} bits")
    elif isinstance(value, str) and ("\0" in value or not _encodable(value)):
        raise misfit(place, "a text without NUL and lone surrogates", value)
    return value


def fit(value: Any, annotation: Any, place: str = "", build: Build | None = None) -> Any:
    """JSON as an annotation has it: a list becomes a tuple where that says so, an object of a class what `build` makes.

    Entries that a TypedDict does not have are those of other versions, and stay as they are. Raises Misfit.
    """
    origin, options = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin is Annotated:
        fits = isinstance(value, (int, float)) and value <= (math.inf if options[1].most is None else options[1].most)
        if not fits or value < options[1].least:
            raise misfit(place, describe(annotation), value)
        return fit(value, options[0], place, build)
    if origin is typing.NotRequired:
        return fit(value, options[0], place, build)
    if origin in (typing.Union, types.UnionType):
        return _fit_union(value, annotation, place, build)
    if origin is typing.Literal:
        if not any(value == option and type(value) is type(option) for option in options):
            raise misfit(place, describe(annotation), value)
        return value
    if origin in (tuple, list):
        return _fit_list(value, annotation, place, build)
    if typing.is_typeddict(annotation):
        return _fit_typed(value, annotation, place, build)
    if origin is dict or annotation is dict:
        if not isinstance(value, dict):
            raise misfit(place, describe(annotation), value)
        inner = options[1] if options else Any
        return {key: fit(item, inner, inside(place, key), build) for key, item in value.items()}
    if annotation in WORDS:
        kinds = (int, float) if annotation is float else annotation
        wrong = not isinstance(value, kinds) or (isinstance(value, bool) and annotation is not bool)
        if wrong or value != value:  # NaN is none
            raise misfit(place, describe(annotation), value)
        return value
    if annotation is Path:
        return Path(fit(value, str, place))
    return value if build is None else build(value, annotation, place)


def _fit_union(value: Any, annotation: Any, place: str, build: Build | None) -> Any:
    options = [option for option in typing.get_args(annotation) if option is not type(None)]
    if value is None and len(options) < len(typing.get_args(annotation)):
        return None
    if len(options) == 1 and isinstance(value, (dict, list)):
        return fit(value, options[0], place, build)  # what is wrong inside says more than that something is
    for option in options:
        try:
            return fit(value, option, place, build)
        except Misfit:
            continue
    raise misfit(place, describe(annotation), value)


def _fit_list(value: Any, annotation: Any, place: str, build: Build | None) -> Any:
    origin, options = typing.get_origin(annotation), list(typing.get_args(annotation))
    if not isinstance(value, list):
        raise misfit(place, describe(annotation), value)
    if origin is list or options[-1] is Ellipsis:
        options = [options[0]] * len(value)
    if len(options) != len(value):
        raise misfit(place, describe(annotation), value)
    items = (fit(item, options[number], inside(place, number), build) for number, item in enumerate(value))
    return tuple(items) if origin is tuple else list(items)


def _fit_typed(value: Any, annotation: Any, place: str, build: Build | None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise misfit(place, "an object", value)
    for key in sorted(annotation.__required_keys__ - value.keys()):
        raise Misfit(f"{inside(place, key)} is missing")
    hints = typing.get_type_hints(annotation, include_extras=True)
    return {key: fit(item, hints.get(key, Any), inside(place, key), build) for key, item in value.items()}


def fit_fields(cls: type, data: Any, place: str = "") -> dict[str, Any]:
    """Arguments for a dataclass, of a JSON object; entries of other versions are left out. Raises Misfit."""
    hints = typing.get_type_hints(cls, include_extras=True)
    names = {entry.name for entry in fields(cls)}
    values = fit(plain(data, place), dict[str, Any], place)
    return {key: fit(value, hints[key], inside(place, key)) for key, value in values.items() if key in names}


def describe(annotation: Any) -> str:
    """An annotation in words."""
    origin, options = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return f"{describe(options[0])} {options[1]}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(option) for option in options)
    if origin is typing.Literal:
        return " or ".join(json.dumps(option) for option in options)
    if origin is list or (origin is tuple and options[-1] is Ellipsis):
        return f"a list, each of it {describe(options[0])}"
    if origin is tuple:
        return f"a list of {len(options)}, each of it {describe(options[0])}"
    return "an object" if origin is dict or annotation is dict else WORDS.get(annotation, f"a {annotation.__name__}")


def inside(place: str, key: object) -> str:
    """The place of an entry."""
    return f"{place}.{key}" if place else str(key)


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8", "surrogateescape")  # names of files may hold any bytes
    except UnicodeEncodeError:
        return False
    return True
