"""Flags: words enter, a dataclass of settings leaves; what is wrong with them becomes one line."""

import contextlib
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from mimkit.core.declaration import Declared, Takes, declarations, takes, usage
from mimkit.core.errors import UserError

HELP = {"-h", "--help"}


@dataclass(kw_only=True)
class Arguments:
    """What every command takes."""

    json: str | None = None
    """Write the result as JSON to this file, or to the standard output with `-`."""
    trust: str | None = None
    """A package of your own whose code a run folder may name. What you name here yourself is trusted anyway."""


A = TypeVar("A", bound=Arguments)


def split_words(
    args: Sequence[str], kinds: Mapping[str, Takes], is_positional: Callable[[str], bool] = lambda word: False
) -> tuple[list[str], list[str]]:
    """Positionals, and flags with their values, wherever they stand.

    A word right behind a flag is its value. `kinds` says what further words behind a flag are: positionals if it takes
    `one` value; values, if it takes `numbers` and they are some, or if it takes `words`, but for the first positional
    that is certainly one. A flag that is not in `kinds` may take numbers.
    """
    positionals: list[str] = []
    flags: list[str] = []
    flag, values = "", 0  # the flag whose values may follow, and how many words of it were there
    for word in args:
        if word.startswith("--") or word in HELP:
            name, equals, _ = word.partition("=")
            flag, values = name.replace("_", "-"), len(equals)
            flags.append(word)
            continue
        kind = kinds.get(flag, "numbers") if flag not in ("", *HELP) else "none"
        is_value = (
            (values == 0 and kind != "none")
            or (kind == "numbers" and is_number(word))
            or (kind == "words" and (positionals != [] or not is_positional(word)))
        )
        if is_value:
            flags.append(word)
            values += 1
        else:
            positionals.append(word)
            flag = ""
    return positionals, flags


def is_number(word: str) -> bool:
    """Whether a word is a value of numbers, so that no recipe or folder is meant by it."""
    if word in ("None", "True", "False"):
        return True
    with contextlib.suppress(ValueError):
        float(word)
        return True
    return False


def flag_kinds(cls: type, default: Any = None) -> dict[str, Takes]:
    """What each flag of a declaration takes, for `split_words`."""
    return {entry.flag: takes(entry.annotation) for entry in declarations(cls, default) if entry.flag}


def without_flag(args: Sequence[str], flag: str) -> list[str]:
    """The words without a flag and its one value, in either form."""
    words = list(args)
    while flag in words:
        place = words.index(flag)
        del words[place : place + 2]
    return [word for word in words if not word.startswith(f"{flag}=")]


def flag_value(args: Sequence[str], flag: str) -> str | None:
    """The last value that words give to a flag that takes one, or None."""
    value = None
    for number, word in enumerate(args):
        if word.startswith(f"{flag}="):
            value = word.partition("=")[2]
        elif word == flag and number + 1 < len(args):
            value = args[number + 1]
    return None if value == "None" else value


def parse(cls: type[A], args: Sequence[str], prog: str, default: A | None = None, explained_by: str = "") -> A:
    """Arguments as a dataclass, by tyro; what is wrong with them becomes one line.

    `explained_by` is the command whose --help lists the options, where that is not `prog`.
    """
    if not args and default is None:
        with contextlib.suppress(TypeError):  # of something that must be given
            return cls()
    import tyro  # takes longer than `mimkit recipes` does

    if HELP & set(args):
        args = ["--help"]  # alone, or tyro would leave out the positionals that are given
    else:
        args = _positionals_first(cls, args, prog, default)
    drawn = io.StringIO()
    try:
        with contextlib.redirect_stderr(drawn):
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
        help_of = explained_by or re.sub(r" [A-Z|\[].*", "", prog)
        raise cause or UserError(f"{one_line(drawn.getvalue())} '{help_of} --help' lists the options") from None
    if arguments.json not in (None, "-"):
        refuse_unwritable(Path(arguments.json))
    return arguments


def _positionals_first(cls: type[Arguments], args: Sequence[str], prog: str, default: Any) -> list[str]:
    """The same words in the order that tyro takes; too few, too many and repeated lists are refused."""
    listed = list(declarations(cls, default))
    refuse_repeated(args, [entry.flag for entry in listed if entry.flag and entry.variadic])
    positionals = [entry for entry in listed if not entry.flag]
    if not positionals:
        return list(args)
    words, flags = split_words(args, {entry.flag: takes(entry.annotation) for entry in listed if entry.flag})
    form = f"{prog} {usage(cls, default)}"
    if len(words) < sum(entry.words for entry in positionals):
        raise UserError(f"wanted: {form}; {taken_by_a_list(args, listed)}'{prog} --help' explains")
    most = sum(max(1, entry.words) for entry in positionals)
    if len(words) > most and not any(entry.variadic for entry in positionals):
        pictures = any(entry.flag == "--data" for entry in listed)
        fix = "pictures go behind --data" if pictures else "leave it out"
        raise UserError(f"'{words[most]}' is a word too many for {form}: {fix}")
    return [*words, *flags]


def refuse_repeated(args: Sequence[str], lists: Sequence[str]) -> None:
    """Refuse a list flag that is given twice, of which tyro would take the last alone."""
    names = [word.partition("=")[0].replace("_", "-") for word in args if word.startswith("--")]
    for flag in lists:
        if names.count(flag) > 1:
            content = "sources" if flag == "--data" else "values"
            raise UserError(f"{flag} is given twice: several {content} go behind one {flag}")


def taken_by_a_list(args: Sequence[str], listed: Sequence[Declared]) -> str:
    """Where a list flag may have taken what was meant as a positional: which one, and what to do; else nothing."""
    for entry in listed:
        if not entry.flag or takes(entry.annotation) != "words":
            continue
        for number, word in enumerate(args):
            if word.partition("=")[0].replace("_", "-") != entry.flag:
                continue
            behind = [word.partition("=")[2]] if "=" in word else []
            for value in args[number + 1 :]:
                if value.startswith("--"):
                    break
                behind.append(value)
            if len(behind) > 1:
                words = " ".join(behind[1:])
                return f"{entry.flag} takes all words behind it, also '{words}': put other words first; "
    return ""


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
