"""Declarations: a dataclass enters, the positionals and flags that it declares leave, as tyro names them."""

import dataclasses
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Takes = Literal["one", "numbers", "words"]


@dataclass(frozen=True)
class Declared:
    """A positional or a flag, as a dataclass declares it."""

    owner: type
    """The dataclass."""
    field: str
    """Its field."""
    flag: str
    """`--like.this`; empty for a positional."""
    metavar: str
    """What stands for the value in a usage line; empty where none is declared."""
    annotation: Any
    """Type of the value."""
    default: Any
    """`dataclasses.MISSING` where one must be given."""

    @property
    def required(self) -> bool:
        """Whether the command does not go without."""
        return self.default is dataclasses.MISSING

    @property
    def variadic(self) -> bool:
        """Whether any number of words is one value."""
        return Ellipsis in typing.get_args(self.annotation)

    @property
    def words(self) -> int:
        """Of a positional: how many words it takes at least."""
        fixed = typing.get_origin(self.annotation) is tuple and not self.variadic
        return (len(typing.get_args(self.annotation)) if fixed else 1) if self.required else 0

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values of a Literal, or of a tuple of them."""
        for annotation in (self.annotation, *typing.get_args(self.annotation)):
            if typing.get_origin(annotation) is Literal:
                return typing.get_args(annotation)
        return ()

    def usage(self) -> str:
        """As it stands in a usage line."""
        if self.flag:
            return f"{self.flag} {self.metavar or self.field.upper()}"
        name = self.metavar or "|".join(self.choices) or self.field.upper()
        if not self.required:
            return name if name.startswith("[") else f"[{name}]"
        return f"{name} ..." if self.variadic and not self.metavar else " ".join([name] * self.words)


def declarations(cls: type, default: Any = None, prefix: str = "") -> Iterator[Declared]:
    """Positionals and flags of a dataclass and of the dataclasses in it, as tyro names them.

    `default` is an instance that gives the defaults, and with them the classes of the parts. Parts that are None, and
    dicts, have no flags.
    """
    import tyro

    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        hint, marks = hints[field.name], ()
        if typing.get_origin(hint) is typing.Annotated:
            hint, *marks = typing.get_args(hint)
        if tyro.conf.Suppress in marks:
            continue
        value = getattr(default, field.name) if default is not None else _default(field)
        naming = next((mark for mark in marks if hasattr(mark, "metavar")), None)
        label = getattr(naming, "name", None)
        name = prefix + (field.name.replace("_", "-") if label is None else label)
        inner = f"{name}." if label != "" else prefix
        if dataclasses.is_dataclass(value):
            yield from declarations(type(value), value, inner)
        elif isinstance(value, tuple) and value and all(dataclasses.is_dataclass(item) for item in value):
            for number, item in enumerate(value):
                yield from declarations(type(item), item, f"{inner}{number}.")
        elif not isinstance(value, dict) and not _holds_dataclass(hint):
            positional = tyro.conf.Positional in marks
            required = _default(field) is dataclasses.MISSING
            yield Declared(
                owner=cls,
                field=field.name,
                flag="" if positional else f"--{name}",
                metavar=getattr(naming, "metavar", None) or "",
                annotation=hint,
                default=dataclasses.MISSING if required and (positional or default is None) else value,
            )


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _holds_dataclass(annotation: Any) -> bool:
    """Whether a type is that of a part, or of several."""
    return dataclasses.is_dataclass(annotation) or any(map(_holds_dataclass, typing.get_args(annotation)))


def usage(cls: type, default: Any = None) -> str:
    """The positionals, and the flags that must be given."""
    listed = list(declarations(cls, default))
    positionals = [entry for entry in listed if not entry.flag]
    flags = [entry for entry in listed if entry.flag and entry.required]
    return " ".join(entry.usage() for entry in (*positionals, *flags))


def takes(annotation: Any) -> Takes:
    """How many words a value is: one, several numbers, or several words of any kind."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = {takes(part) for part in typing.get_args(annotation)}
        return "words" if "words" in parts else "numbers" if "numbers" in parts else "one"
    if typing.get_origin(annotation) is not tuple:
        return "one"
    return "numbers" if set(typing.get_args(annotation)) <= {int, float, bool, Ellipsis} else "words"
