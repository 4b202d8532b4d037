"""Checkpoints: the state of a run enters, a file that is complete or absent leaves (and back)."""

import os
from pathlib import Path
from typing import Any

import torch

from mimkit.errors import UserError


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted((folder / "checkpoints").glob("step-*.pt"))


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write beside, flush to disk, rename: `kill -9` at any moment leaves the last complete file usable.

    Keeps the newest `keep` checkpoints.
    """
    path = folder / "checkpoints" / f"step-{step:09d}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    try:
        with open(beside, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)
    for old in checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


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
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise UserError(
            f"checkpoint {path} cannot be read ({type(error).__name__}): remove it, and the run goes on from the "
            "checkpoint before it, or from the start"
        ) from error
    if not isinstance(state, dict) or not {"model", "optimizer", "step"} <= set(state):
        raise UserError(f"{path} is no checkpoint of mimkit: remove it, or name another run folder")
    return state
