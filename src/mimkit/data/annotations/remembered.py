"""What takes long to compute of many files: their paths enter, arrays leave, from a cache while no file has changed."""

import os
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from mimkit.core.memory import cores
from mimkit.data.folders import SETTLED, cache_folder
from mimkit.data.pictures import digest

Arrays = dict[str, np.ndarray]
T = TypeVar("T")
R = TypeVar("R")


def remembered(purpose: str, paths: Iterable[bytes], compute: Callable[[], Arrays]) -> Arrays:
    """What `compute` gives of these files; from the cache if size and time of every file are those of then."""
    stamps, newest = [], 0
    listed = list(paths)
    for path in listed:
        try:
            status = os.stat(path)
        except OSError:
            stamps.append((-1, -1))
            continue
        stamps.append((status.st_size, status.st_mtime_ns))
        newest = max(newest, status.st_mtime_ns)
    cached = cache_folder() / "annotations" / f"{digest(purpose, listed, stamps)}.npz"
    try:
        with np.load(cached, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception:  # no cache, or one that is damaged
        pass
    arrays = compute()
    if newest < time.time_ns() - SETTLED:  # a change within the same tick of the clock would never be noticed
        _write(cached, arrays)
    return arrays


def _write(cached: Path, arrays: Arrays) -> None:
    """Beside and renamed, so that nobody reads half a file; a cache that cannot be written is no error."""
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cached.parent, suffix=".part", delete=False) as file:
            try:
                np.savez(file, **arrays)  # type: ignore[arg-type]
                file.close()
                os.replace(file.name, cached)
            except OSError:
                os.unlink(file.name)
    except OSError:
        pass


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """The function of each item, in their order; most of the time goes to the disk and to decoders."""
    with ThreadPoolExecutor(min(16, 2 * cores())) as pool:
        return list(pool.map(function, items))
