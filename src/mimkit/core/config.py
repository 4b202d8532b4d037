"""Configs as plain data: a tree of dataclasses enters, JSON leaves (and back), and what differs between two of them."""

import dataclasses
import typing
from pathlib import Path
from typing import Any

from mimkit.core.errors import UserError, unknown
from mimkit.core.names import RENAMED_SETTINGS, class_name, find_class
from mimkit.core.schema import Misfit, fit, inside, misfit, plain


def to_dict(value: Any) -> Any:
    """Dataclasses become dicts with their class name under `class` (`core/names.py`); all else must be plain JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": class_name(type(value)), **fields}
    if isinstance(value, (tuple, list)):
        return [to_dict(v) for v in value]
    if isinstance(value, dict):
        return {k: to_dict(v) for k, v in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} cannot be written to config.json")


def from_dict(data: Any, annotation: Any = Any, place: str = "") -> Any:
    """Undo `to_dict`, also as earlier versions wrote it.

    Raises:
        UserError: an unknown key or class, or a value that is not what its setting takes; a Misfit names its place.
    """
    if annotation is Any and isinstance(data, dict) and "class" in data:
        return _settings(data, object, place)
    return fit(data, annotation, place, build=_settings)


def check_dict(data: Any) -> dict[str, Any]:
    """The same settings as plain data, for who reads them without their classes. Raises Misfit.

    Of the classes of packages that nobody has named, and of settings of other versions, nothing is checked.
    """
    plain(data)
    return _checked(data, object, "")


def _settings(data: Any, base: type, place: str) -> Any:
    """The object of a class that its data name, which must be a `base`."""
    if not dataclasses.is_dataclass(base) and base is not object:
        return data  # of an annotation that only the class itself understands
    cls, values = _named(data, place)
    if not issubclass(cls, base):
        raise misfit(f"{place}.class".lstrip("."), f"a {base.__name__}", data["class"])
    # JSON has no tuples: the annotation tells whether a list was one.
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            raise unknown(f"setting of {cls.__name__}", key, names)
    arguments = {key: from_dict(value, hints[key], inside(place, key)) for key, value in values.items()}
    try:
        return cls(**arguments)
    except (UserError, TypeError, ValueError) as error:  # what the class itself does not take
        raise Misfit(f"{place or cls.__name__}: {error}") from error


def _checked(data: Any, base: type, place: str) -> Any:
    """The same data."""
    if not dataclasses.is_dataclass(base) and base is not object:
        return data
    try:
        cls, values = _named(data, place)
    except Misfit:
        raise
    except UserError:  # a class of another package, or of another version
        return data
    hints = typing.get_type_hints(cls)
    for key in values.keys() & hints.keys():
        fit(values[key], hints[key], inside(place, key), build=_checked)
    return data


def _named(data: Any, place: str) -> tuple[type, dict[str, Any]]:
    """The class that data name, and its settings under the names of today."""
    name = fit(data, dict, place).get("class")
    cls, short = find_class(fit(name, str, inside(place, "class")))
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise UserError(f"config.json names {name}, which is no dataclass")
    # Runs of earlier versions say the old names of settings.
    renamed = RENAMED_SETTINGS.get(short, {})
    return cls, {renamed.get(key, key): value for key, value in data.items() if key != "class"}


def absolute(name: str) -> str:
    """The whole path of a folder that exists, so that a run goes on from anywhere; any other word as it is."""
    return str(Path(name).resolve()) if name and Path(name).is_dir() else name


def flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted names to values, as on the command line."""
    if isinstance(data, dict) and data:
        return {k: v for key, value in data.items() for k, v in flatten(value, f"{prefix}{key}.").items()}
    return {prefix[:-1]: data}


def differences(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted names whose values differ, with both values; None stands for absent."""
    first, second = flatten(to_dict(a)), flatten(to_dict(b))
    return {
        key: (first.get(key), second.get(key))
        for key in sorted(first.keys() | second.keys())
        if first.get(key) != second.get(key)
    }
