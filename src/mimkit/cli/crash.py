"""Crashes: an error that nobody expected enters; a file with all that a report of it needs, and one line, leave."""

import json
import os
import platform
import shlex
import traceback
from pathlib import Path

from mimkit.core.files import read_regular

PACKAGES = ("torch", "timm", "numpy", "tyro")
FILE = "crash.txt"

_run: list[Path] = []  # of this command, the last one counts


def note_run(folder: Path) -> None:
    """Say in which folder the run of this command lives."""
    _run.append(folder)


def forget_run() -> None:
    """Say that a new command begins, in a process that has run others."""
    _run.clear()


def run_of(args: list[str]) -> Path | None:
    """The folder of the run that a command trains or reads, if there is one."""
    named = (word.partition("=")[2] if word.startswith("--run=") else word for word in args)
    folders = [*reversed(_run), *(Path(word).expanduser() for word in named if not word.startswith("-"))]
    return next(filter(_holds_run, folders), None)


def _holds_run(folder: Path) -> bool:
    try:
        return (folder / "config.json").is_file()
    except OSError:  # a word too long to be a file's name
        return False


def last_record(run: Path) -> dict:
    """The last whole line of a run's metrics; empty where there is none."""
    try:
        lines = read_regular(run / "metrics.jsonl").splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # half a line, as of a process that was killed
            continue
        if isinstance(record, dict):
            return record
    return {}


def description(error: BaseException, args: list[str], run: Path | None) -> str:
    """Command, versions, step and settings of the run, and the traceback."""
    from importlib.metadata import PackageNotFoundError, version  # slower than `mimkit --help`

    from mimkit import __version__

    versions = {"mimkit": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    parts = [
        f"command   mimkit {shlex.join(args)}",
        *(f"{name:<9} {value}" for name, value in versions.items()),
    ]
    if run is not None:
        parts += [f"run       {run}", f"step      {last_record(run).get('step', 'none yet')}"]
    parts += ["", "".join(traceback.format_exception(error)).rstrip()]
    if run is not None:
        try:
            parts += [
                "",
                "settings (config.json)",
                read_regular(run / "config.json").decode("utf-8", "replace").rstrip(),
            ]
        except OSError as unreadable:
            parts += ["", f"settings: config.json cannot be read ({unreadable.strerror})"]
    return "\n".join(parts) + "\n"


def write_report(error: BaseException, args: list[str], debug: bool) -> str:
    """Write the report beside the run, or with --debug into the working folder; returns what to say about it."""
    run = run_of(args)
    if run is None and not debug:
        return "--debug shows where, and leaves a report in crash.txt"
    rank = os.environ.get("RANK", "0")  # of several processes each leaves its own
    file = (run or Path()) / (FILE if rank == "0" else f"crash-{rank}.txt")
    try:
        file.write_text(description(error, args, run), encoding="utf-8")
    except OSError as unwritable:
        return f"no report could be written to {file} ({unwritable.strerror}): --debug shows where"
    return f"{file} holds the details"
