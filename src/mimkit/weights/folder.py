"""An export folder is written beside its place, flushed to disk and swapped in: a complete one stands there always."""

import ctypes
import os
import shutil
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mimkit.core.errors import UserError
from mimkit.core.files import read_json_of, read_regular
from mimkit.core.integrity import IDENTITY, sign
from mimkit.weights.head import HEAD, WORDS

# Of every export; some have more, which their config.json lists as `files`.
FILES = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", HEAD, WORDS, IDENTITY}


MARK = "pre-trained with mimkit"  # in config.json: this folder is ours to replace
READING = "reading"  # in config.json: how files became pictures


@contextmanager
def replaced(folder: Path, identity: Mapping[str, Any] | None = None) -> Generator[Path]:
    """A folder to write an export into, which takes the place of `folder` when the block ends well.

    Other files that a person put beside an earlier export move along. An identity, if given, is written
    with the checksums of the files.

    Raises:
        UserError: `folder` holds what no export of mimkit wrote, or cannot be written.
    """
    # Through links: what is replaced is the folder that a link names, not the link.
    folder = folder.resolve()
    if not _replaceable(folder):
        raise UserError(f"'{folder}' holds no export of mimkit to replace: give a new or empty folder")
    partial = folder.with_name(f".{folder.name}.partial")
    old = folder.with_name(f".{folder.name}.old")
    try:
        _clear(partial)
        partial.mkdir(parents=True, exist_ok=True)
        yield partial
        if identity is not None:
            sign(partial, identity)
        ours = _ours(partial)
        if others := sorted(name for name in ours - _ours(folder) if (folder / name).exists()):
            raise UserError(f"'{folder / others[0]}' is of no export of mimkit: move it, or give another folder")
        for file in (partial / name for name in os.listdir(partial) if name in ours):
            shutil.copymode(partial / "README.md", file)  # safetensors writes for the owner alone
            _flush(file)
        _flush(partial)  # the directory too: else a crash could leave a folder that has lost its new names
        if _exchange(partial, folder):
            old = partial
        else:
            # Two renames: between them nothing stands in the place, for as short as the system allows.
            _clear(old)
            if folder.exists():
                folder.rename(old)
            partial.rename(folder)
        _flush(folder.parent)
        before = _ours(old)
        for file in old.iterdir() if old.exists() else ():
            if file.name not in before:
                file.rename(folder / file.name)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the export '{folder}' cannot be written: {error}; an earlier one is unchanged") from error
    finally:
        _clear(partial)
        _clear(old)


def _replaceable(folder: Path) -> bool:
    """Whether nothing of other origin is lost when an export takes this place."""
    try:
        return not folder.exists() or not any(folder.iterdir()) or MARK in read_regular(folder / "config.json").decode()
    except (OSError, UnicodeDecodeError):  # a file, or no readable config.json
        return False


def _ours(folder: Path) -> set[str]:
    """The names of an export's files, whether or not it has them all."""
    try:
        files = read_json_of(folder / "config.json").get("files")
    except UserError:  # a damaged one
        return FILES
    return FILES | {Path(str(name)).name for name in (files if isinstance(files, list) else [])}


def _clear(folder: Path) -> None:
    """Remove the files of an export, and the folder when nothing else is in it."""
    with suppress(OSError):
        for name in _ours(folder):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step, where the system can (Linux's renameat2); False where it cannot."""
    if not sys.platform.startswith("linux"):
        return False
    # Python has no call for it, and an old C library neither.
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0
