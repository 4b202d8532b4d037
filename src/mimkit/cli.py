"""The command line: words enter, a command runs, an exit status leaves. Imports nothing heavy before it must."""

import contextlib
import io
import os
import re
import sys
from typing import Any, TypeVar

from mimkit.errors import UserError, unknown

T = TypeVar("T")

COMMANDS = {
    "recipes": ("[--json FILE]", "list the recipes"),
    "pretrain": ("[RECIPE] --data DATA [--run DIR] [--epochs N] ...", "learn from pictures without labels"),
    "evaluate": ("knn|probe TARGET --data DATA", "measure a run, an export, a timm model or a baseline"),
    "masks": ("MASKER|RECIPE --data DATA [--out FILE]", "draw masks on your pictures"),
    "export": ("RUN --to timm|huggingface --out DIR", "leave with the model"),
    "doctor": ("DATA [RECIPE]", "what is wrong with a folder before anything trains"),
    "diff": ("RUN RUN", "what differs between two runs"),
}

USAGE = """usage: mimkit COMMAND ...

{commands}

'mimkit COMMAND --help' explains one. DATA: folders, text files of paths, Parquet files, or photos, fashion-mnist,
cifar10, cifar100, stl10, imagenette. Every command takes --json FILE (or - for the standard output) and --debug.

A first run, no data needed:   mimkit pretrain --data photos
"""


def usage() -> str:
    """The text of `mimkit --help`."""
    lines = (f"  {name:<9} {args:<53} {what}" for name, (args, what) in COMMANDS.items())
    return USAGE.format(commands="\n".join(lines))


def parse(cls: type[T], args: list[str], prog: str, default: T | None = None) -> T:
    """Arguments as a dataclass, by tyro; what is wrong with them becomes one line."""
    import tyro

    said = io.StringIO()
    more = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(cls, args=args, prog=prog, config=(tyro.conf.FlagConversionOff,), **more)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(f"{one_line(said.getvalue())}; '{prog} --help' lists the options") from None


def one_line(box: str) -> str:
    """The message in tyro's frame, and the nearest option if it names one."""
    rows = [re.sub(r"\x1b\[[0-9;]*m", "", row).strip("│╭╰─╮╯ \t") for row in box.splitlines()]
    near = next((rows[i + 1] for i, row in enumerate(rows[:-1]) if row.startswith("Perhaps you meant")), "")
    body = rows[1:]  # the first row is the title of the frame
    message = " ".join(body[: body.index("")] if "" in body else body)
    message = re.sub(r"^Error parsing config\.\S+: ", "", message) or "wrong usage"
    message = (message[0].lower() + message[1:]).rstrip(".")
    return f"{message}; did you mean {near.split(' ')[0]}?" if near else message


def main(argv: list[str] | None = None) -> int:
    """Run one command. 0: done; 2: something to mend, said in one line; 128 + N: stopped by signal N."""
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # idle threads that spin ruin small models on shared cores
    args = sys.argv[1:] if argv is None else argv
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0
    if args[0] == "--version":
        from mimkit import __version__

        print(f"mimkit {__version__}")
        return 0
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    try:
        if args[0] not in COMMANDS:
            raise unknown("command", args[0], COMMANDS)
        return run(args[0], args[1:])
    except UserError as error:
        if debug:
            raise
        print(f"mimkit: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mimkit: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `mimkit recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        print(
            f"mimkit: {type(error).__name__}: {error} (not expected: --debug shows where; please report it)",
            file=sys.stderr,
        )
        return 1


def run(command: str, args: list[str]) -> int:
    """Check what can be checked without torch, then hand over."""
    words = [arg for arg in args[:2] if not arg.startswith("-")]
    if command == "pretrain" and words[:1] == args[:1] and words:
        from mimkit.recipes import check_recipe

        check_recipe(words[0])
    if command == "evaluate" and "--help" not in args and "-h" not in args:
        if not words or words[0] not in ("knn", "probe"):
            raise unknown("kind of evaluation", words[0] if words else "", ["knn", "probe"])
        if len(words) < 2:
            raise UserError(f"say what to measure: mimkit evaluate {words[0]} RUN|EXPORT|TIMM-NAME|pixels --data DATA")
    from mimkit import commands

    return getattr(commands, command)(args)


def show(result: Any, json_to: str | None, text: Any) -> None:
    """Print for people and, with --json, write the same for programs; `-` keeps the standard output for JSON."""
    import json

    from rich.console import Console

    console = Console(stderr=json_to == "-", highlight=False)
    if not console.is_terminal:  # a log or a pipe has no width
        console.width = 160
    console.print(text, soft_wrap=isinstance(text, str))
    if json_to == "-":
        print(json.dumps(result, indent=2))
    elif json_to:
        try:
            with open(json_to, "w", encoding="utf-8") as file:
                file.write(json.dumps(result, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"cannot write --json {json_to}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
