"""`mimkit diff`: two run folders enter, the settings and last numbers that differ leave."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.markup import escape
from rich.table import Table
from tyro.conf import Positional, arg

from mimkit.cli.console import show
from mimkit.core.errors import UserError
from mimkit.core.flags import Arguments, parse


@dataclass(kw_only=True)
class DiffArguments(Arguments):
    """Settings and last numbers that differ between two runs."""

    runs: Positional[Annotated[tuple[Path, Path], arg(metavar="RUN")]]
    """Two folders that 'mimkit pretrain' wrote."""


def declaration() -> tuple[type[Arguments], Arguments | None]:
    """The dataclass, and where its flags get defaults from others an instance."""
    return DiffArguments, None


def run(args: list[str]) -> int:
    """What differs between two runs."""
    arguments = parse(DiffArguments, args, "mimkit diff")
    first, second = (_flat(folder) for folder in arguments.runs)
    table = Table(box=None, pad_edge=False)
    for title in ("", *map(str, arguments.runs)):
        table.add_column(escape(title), overflow="fold")
    result = {}
    for key in sorted(first.keys() | second.keys()):
        values = [first.get(key), second.get(key)]
        if values[0] != values[1]:
            result[key] = values
            table.add_row(key, *(escape(json.dumps(value)) for value in values))
    show(result, arguments.json, table if result else "no difference")
    return 0


def _flat(folder: Path) -> dict[str, Any]:
    """Settings of a run, what followed from them, and its last numbers, by dotted names."""
    from mimkit.core.config import flatten
    from mimkit.train.run_folder import RunFolder

    run_folder = RunFolder(folder)
    if not run_folder.exists:
        raise UserError(f"{folder} holds no run of mimkit: give two folders that 'mimkit pretrain' wrote")
    last: dict[str, Any] = {}
    for record in run_folder.metrics():
        last |= record
    settings = {key: value for key, value in run_folder.read_plain_config().items() if key != "started"}
    return flatten(settings | {"last": last})
