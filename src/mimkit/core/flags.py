"""Flags: words enter, a dataclass of settings leaves; what is wrong with them becomes one line."""

import contextlib
import io
import os
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from mimkit.core.errors import UserError


@dataclass(kw_only=True)
class Arguments:
    """What every command takes."""

    json: str | None = None
    """Write the result as JSON to this file, or to the standard output with `-`."""


A = TypeVar("A", bound=Arguments)


def parse(cls: type[A], args: list[str], prog: str, default: A | None = None) -> A:
    """Arguments as a dataclass, by tyro; what is wrong with them becomes one line."""
    if not args and default is None:
        with contextlib.suppress(TypeError):  # of something that must be given
            return cls()
    import tyro  # takes longer than `mimkit recipes` does

    # Caught, since tyro writes what is wrong instead of raising it.
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            arguments = tyro.cli(
                cls,
                args=args,
                prog=prog,
                config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),  # an absent part has no flags
                default=tyro.MISSING_NONPROP if default is None else default,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        # tyro turns an error of a setting's own check into an exit; the message that was meant is in its chain.
        cause: BaseException | None = stop
        while cause is not None and not isinstance(cause, UserError):  # a setting that refuses its value
            cause = cause.__context__
        help_of = re.sub(r" [A-Z|\[].*", "", prog)
        raise cause or UserError(f"{one_line(printed.getvalue())} '{help_of} --help' lists the options") from None
    if arguments.json not in (None, "-"):
        refuse_unwritable(Path(arguments.json))
    return arguments


def one_line(box: str) -> str:
    """The message in tyro's frame (drawn in Unicode or ASCII), and the nearest option if it names one."""
    # tyro draws boxes in colors, of Unicode or ASCII by the terminal.
    rows = [re.sub(r"\x1b\[[0-9;]*m", "", row).strip("│╭╰╮╯ \t") for row in box.splitlines()]
    rows = ["" if set(row) <= set("─-") else row for row in rows]
    near = next((after for row, after in pairwise(rows) if row == "Perhaps you meant:"), "")
    body = rows[1:] if rows[1] else rows[2:]  # below the title, and the rule under it
    message = " ".join(body[: body.index("")] if "" in body else body)
    message = re.sub(r"^Error parsing (\S+): (config\.)?", r"\1: ", message) or "wrong usage"
    for pattern, plain in (
        (r"^Missing from [^:]*: (--\S+) .*", r"\1 is missing"),
        (r": invalid literal for int\(\) with base 10: (.*)", r" takes a whole number, not \1"),
        (r": could not convert string to float: (.*)", r" takes a number, not \1"),
        (r": no type matching (.*) could be instantiated from \[(.*)\]", r" takes \1, not \2"),
    ):
        message = re.sub(pattern, plain, message)
    message = (message[0].lower() + message[1:]).rstrip(".")
    return f"{message}; did you mean {near.split(' ')[0]}?" if near else f"{message};"


def refuse_unwritable(file: Path) -> None:
    """Refuse a file that cannot be written, before the work that it would hold."""
    folder = file.parent
    if file.is_dir() or not folder.is_dir() or not os.access(file if file.exists() else folder, os.W_OK):
        reason = "it is a folder" if file.is_dir() else f"no writing in {folder}"
        reason = reason if folder.is_dir() else f"there is no folder {folder}"
        raise UserError(f"cannot write {file} ({reason}): name another file")
