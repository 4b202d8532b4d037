"""Reference of all commands: their declarations enter, docs/commands.md leaves.

`python -m mimkit.cli.reference > docs/commands.md` renews the page; a test compares it.
"""

import ast
import dataclasses
import importlib
import inspect
import sys
import typing
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from mimkit.cli.overview import COMMANDS
from mimkit.core.declaration import Declared, declarations, usage

INTRODUCTION = """# Commands

Made from the declarations in `src/mimkit/cli/` by `python -m mimkit.cli.reference > docs/commands.md`; a test keeps the
page current. Flags may stand before or after other words; a flag that takes several values ends at the next flag.
`--debug`, which every command takes, shows the traceback of an error.
"""
FORMS = {
    "evaluate finetune": "TARGET [RECIPE] --data DATA ...",
    "evaluate segment": "TARGET ... --data DATA [--labels MASKS]",
}
"""Of kinds of a command that have flags of their own."""
NOTES = {
    "pretrain": "The flags are those of MAE with random masks. Those of a recipe, and of what `--masker` and "
    "`--target` put into it, are listed by `mimkit pretrain RECIPE --help`.",
    "evaluate finetune": "The flags are those of `finetune_mini_32`; `mimkit evaluate finetune TARGET RECIPE --help` "
    "lists those of another recipe.",
    "evaluate segment": "`mimkit evaluate depth` takes the same flags.",
    "masks": "The flags are those of the random masker; `mimkit masks NAME --help` lists those of another one.",
}


def declared() -> Iterator[tuple[str, type, Any]]:
    """Each command with its dataclass and the instance that gives defaults, or None."""
    for name in COMMANDS:
        module = importlib.import_module(f"mimkit.cli.{name}")
        yield name, *module.declaration()
        if name == "evaluate":
            yield "evaluate finetune", *module.finetune_declaration()
            yield "evaluate segment", *module.dense_declaration()


@cache
def _docs_of(file: str, name: str) -> dict[str, str]:
    """The string below each field of a class."""
    docs = {}
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    body = next((node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), [])
    for node, following in pairwise(body):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        text = following.value if isinstance(following, ast.Expr) else None
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            docs[node.target.id] = " ".join(inspect.cleandoc(text.value).split())
    return docs


def description(entry: Declared) -> str:
    """What a declaration says about one positional or flag."""
    for cls in entry.owner.__mro__:
        if dataclasses.is_dataclass(cls):
            docs = _docs_of(inspect.getfile(cls), cls.__name__)
            if entry.field in docs:
                return docs[entry.field]
    return ""


def type_words(annotation: Any) -> str:
    """What a value looks like."""
    names = {int: "whole number", float: "number", str: "word", Path: "path", bool: "True or False", type(None): "None"}
    if annotation in names:
        return names[annotation]
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if typing.get_origin(annotation) is tuple:
        if Ellipsis in inner:
            several = type_words(inner[0])
            return f"{several}, several" if "`" in several else f"{several}s"
        return f"{len(inner)} {type_words(inner[0])}s"
    return " or ".join(type_words(inner_type) for inner_type in inner if inner_type is not type(None))


def default_words(entry: Declared) -> str:
    """The default as one would type it."""
    if entry.required:
        return "must be given"
    value = entry.default
    if value is None or value in ((), ""):
        return ""
    words = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"`{words}`"


def section(name: str, cls: type, default: Any) -> str:
    """One command in Markdown."""
    listed = list(declarations(cls, default))
    rows = [
        (
            f"`{entry.flag or entry.usage()}`".replace("|", "\\|"),
            description(entry).replace("|", "\\|"),
            type_words(entry.annotation),
            default_words(entry),
        )
        for entry in sorted(listed, key=lambda entry: bool(entry.flag))
    ]
    form = FORMS[name] if name in FORMS else COMMANDS[name][0]
    lines = [f"## mimkit {name}", "", f"    mimkit {name} {form}", "", inspect.cleandoc(cls.__doc__ or ""), ""]
    if name in NOTES:
        lines += [NOTES[name], ""]
    lines += ["| word or flag | | value | default |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows), ""])


def page() -> str:
    """docs/commands.md."""
    return "\n".join([INTRODUCTION, *(section(*command) for command in declared())])


def usages() -> dict[str, str]:
    """By command, the positionals and required flags that its dataclass declares."""
    return {name: usage(cls, default) for name, cls, default in declared()}


if __name__ == "__main__":
    sys.stdout.write(page())
