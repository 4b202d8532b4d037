"""Files: a path enters, the bytes or the JSON of a regular file leave; nothing else is waited for."""

import errno
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from mimkit.core.errors import UserError
from mimkit.core.schema import Misfit, fit, plain


def refuse_no_name(name: str | Path) -> None:
    """Refuse what can be no path: with a NUL, or with a part or a whole that is too long. Raises UserError."""
    text = str(name)
    if "\0" in text:
        raise UserError(f"{text!r:.80} holds a NUL, which no path can: give another name")
    size = len(os.fsencode(text))
    if size > 4095 or any(len(os.fsencode(word)) > 255 for word in text.split("/")):
        raise UserError(f"{text[:60]}... is too long for a path ({size:,} bytes): give another name")


def open_regular(path: str | bytes | Path) -> BufferedReader:
    """A regular file to read.

    Raises OSError, also for anything else: a pipe would be waited for without end, and a device has no end.
    """
    return open(os.fsdecode(path), "rb", opener=_opened_regular)


def _opened_regular(path: str, flags: int) -> int:
    # Opening a pipe waits for a writer, unless told not to.
    opened = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(errno.EINVAL, "it is no regular file")
    return opened


def read_regular(path: str | bytes | Path) -> bytes:
    """The bytes of a regular file. Raises OSError, see `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def read_json(path: Path, schema: Any = dict[str, Any]) -> Any:
    """The JSON of a file, as `core.schema.fit` has it.

    Raises:
        UserError: it cannot be read, or something in it is not what its place asks for.
    """
    try:
        data = json.loads(read_regular(path).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} cannot be read as JSON ({reason}): restore it, or use another folder") from error
    with named(path):
        return fit(plain(data), schema)


def read_json_of(path: Path) -> dict[str, Any]:
    """The JSON object of a file, empty where there is none. Raises UserError for one that is damaged."""
    return read_json(path) if os.path.lexists(path) else {}


class named:
    """Inside, a misfit becomes a UserError that begins with the file and ends with the fix."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Misfit):
            raise UserError(f"{self.path}: {error}; restore the file, or use another folder") from error
