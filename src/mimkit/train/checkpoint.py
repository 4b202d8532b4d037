"""Checkpoints: the state of a run enters, a file that is complete or absent leaves (and back)."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from mimkit.core.errors import UserError
from mimkit.core.files import open_regular
from mimkit.core.names import rename_tensors


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted((folder / "checkpoints").glob("step-*.pt"))


@contextmanager
def replacing(path: Path) -> Generator[IO[bytes]]:
    """A file beside `path`, flushed to disk and renamed over it; nothing is left beside when that fails."""
    beside = path.with_name(path.name + ".tmp")
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write beside, flush to disk, rename: `kill -9` at any moment leaves the last complete file usable.

    Keeps the newest `keep` checkpoints. Raises OSError when the disk is full or not writable.
    """
    path = folder / "checkpoints" / f"step-{step:09d}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        _write(state, file)
    flush_folder(path.parent)
    for old in checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def _write(state: dict[str, Any], file: IO[bytes]) -> None:
    """torch.save, whose RuntimeError about an unfinished archive would hide what the disk said."""
    try:
        torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def remove_unfinished(folder: Path) -> None:
    """Remove what a kill in the middle of a save left."""
    for path in (folder / "checkpoints").glob("*.tmp"):
        path.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; nothing is unpickled but tensors and plain values."""
    try:
        with open_regular(path) as file:
            state = torch.load(file, map_location=device, weights_only=True)
    except Exception as error:
        raise UserError(
            f"checkpoint {path} cannot be read ({type(error).__name__}): remove it, and the run goes on from the "
            "checkpoint before it, or from the start"
        ) from error
    if not isinstance(state, dict) or not {"model", "optimizer", "step"} <= set(state):
        raise UserError(f"{path} is no checkpoint of mimkit: remove it, or name another run folder")
    if "format" not in state:
        state["model"] = rename_tensors(state["model"])
    return state


def restore(path: Path, task: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> tuple[int, float]:
    """Load a checkpoint into the task and its optimizer; returns the steps and seconds behind it."""
    state = load_checkpoint(path, device)
    try:
        task.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"]), float(state["seconds"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"checkpoint {path} belongs to another run ({str(error).splitlines()[0]}): remove it, and the run goes on "
            "from the checkpoint before it, or from the start"
        ) from error
