"""Configs as plain data: a tree of dataclasses enters, JSON leaves (and back), and what differs between two of them."""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any

from mimkit.core.errors import UserError, unknown
from mimkit.core.names import RENAMED_SETTINGS, class_name, find_class


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


def from_dict(data: Any, annotation: Any = None) -> Any:
    """Undo `to_dict`, also as earlier versions wrote it; unknown keys and classes that are no dataclass are refused."""
    if isinstance(data, dict) and "class" in data:
        cls, short = find_class(str(data["class"]))
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            raise UserError(f"config.json names {data['class']}, which is no dataclass")
        # Runs of earlier versions say the old names of settings.
        renamed = RENAMED_SETTINGS.get(short, {})
        values = {renamed.get(key, key): value for key, value in data.items() if key != "class"}
        # JSON has no tuples: the annotation tells whether a list was one.
        hints = typing.get_type_hints(cls)
        names = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                raise unknown(f"setting of {cls.__name__}", key, names)
        return cls(**{key: from_dict(value, hints[key]) for key, value in values.items()})
    if isinstance(data, list) and _wants_tuple(annotation):
        return tuple(from_dict(value) for value in data)
    if isinstance(data, list):
        return [from_dict(value) for value in data]
    return data


def _wants_tuple(annotation: Any) -> bool:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return any(_wants_tuple(a) for a in typing.get_args(annotation))
    return annotation is tuple or typing.get_origin(annotation) is tuple


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
