"""Workers that are spawned: what they are handed enters; whether they have to run the person's script again leaves.

Where processes are not forked (macOS, and Linux from Python 3.14), a new process imports the main module first, because
what it is handed could come from there. A script that trains without `if __name__ == "__main__":` would train again in
each worker. Most scripts hand over nothing of their own, so the main module is hidden while workers start.
"""

import multiprocessing
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

GUARD = 'put what the script does under `if __name__ == "__main__":`, because its workers import it'


@contextmanager
def main_hidden(*handed: Any) -> Generator[None]:
    """Workers that start in this block do not import the main module, unless they need it for what is handed over."""
    main: Any = sys.modules.get("__main__")
    if main is None or forked() or any(is_of_main(value) for value in handed):
        yield
        return
    hidden = {name: vars(main)[name] for name in ("__spec__", "__file__") if name in vars(main)}
    main.__spec__ = main.__file__ = None  # what multiprocessing finds the main module by
    try:
        yield
    finally:
        del main.__spec__, main.__file__
        vars(main).update(hidden)


def forked() -> bool:
    """Whether workers are copies of this process."""
    return multiprocessing.get_start_method() == "fork"


def is_of_main(value: Any) -> bool:
    """Whether a value, or a setting or item inside it, is of a class that the main module defines."""
    if type(value).__module__ == "__main__":
        return True
    if is_dataclass(value) and not isinstance(value, type):
        return any(is_of_main(getattr(value, field.name)) for field in fields(value))
    return isinstance(value, (tuple, list)) and any(is_of_main(item) for item in value[:100])
