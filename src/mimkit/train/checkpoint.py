"""Checkpoints: the state of a run enters, a file or folder that is complete or absent leaves (and back)."""

import os
import shutil
import zipfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from mimkit.core.errors import UserError
from mimkit.core.files import open_regular
from mimkit.core.integrity import Damaged, not_finite
from mimkit.core.names import rename_tensors
from mimkit.core.state_folder import age, checkpoints, read_state
from mimkit.train.identity import difference, identity_of
from mimkit.train.sharding import load_whole, local, shared_tensors


def place(folder: Path, step: int, ending: str) -> Path:
    """Where the checkpoint of a step is or will be."""
    return folder / "checkpoints" / f"step-{step:09d}{ending}"


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
    path = place(folder, step, ".pt")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        _write(state, file)
    flush_folder(path.parent)
    prune(folder, keep)
    return path


def prune(folder: Path, keep: int) -> None:
    """Remove all checkpoints but the newest `keep`."""
    for old in checkpoints(folder)[:-keep]:
        remove(old)


def remove(path: Path) -> None:
    """Remove a checkpoint; a kill in the middle of that leaves none that looks complete."""
    if path.is_dir():
        beside = path.with_name(path.name + ".old.tmp")
        shutil.rmtree(beside, ignore_errors=True)
        path.rename(beside)
        shutil.rmtree(beside, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
        remove(path)


def flush_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class BadCheckpoint(UserError):
    """A checkpoint that nothing may go on from: damaged, or of another run."""


def load_checkpoint(
    path: Path, device: torch.device | str = "cpu", like: Mapping[str, DTensor] = MappingProxyType({})
) -> dict[str, Any]:
    """Read a checkpoint; nothing is unpickled but tensors and plain values.

    Of a folder's tensors that `like` names, see `train.sharding.shared_tensors`, this process's share alone is read.

    Raises BadCheckpoint, which names the newest good one before it, when a bit of the file differs from what was
    written, a weight is not finite, or the checkpoint belongs to another run than the config.json beside it.
    """
    try:
        return _read(path, device, like)
    except BadCheckpoint as error:
        before = [other for other in checkpoints(path.parents[1]) if age(other) < age(path)]
        older = next((other for other in reversed(before) if is_good(other)), None)
        rest = "no good one is before it" if older is None else f"{older.name} before it is good"
        raise BadCheckpoint(f"{error}: remove it, {rest}") from error


def is_good(path: Path) -> bool:
    """Whether a checkpoint can be gone on from."""
    try:
        _read(path, "cpu")
    except BadCheckpoint:
        return False
    return True


def _read(path: Path, device: torch.device | str, like: Mapping[str, DTensor] = MappingProxyType({})) -> dict[str, Any]:
    try:
        state = read_state(path, device, like) if path.is_dir() else _read_file(path, device, shared=bool(like))
    except Damaged as error:
        raise BadCheckpoint(f"checkpoint {path} is damaged ({error})") from error
    except Exception as error:
        raise BadCheckpoint(f"checkpoint {path} cannot be read ({type(error).__name__})") from error
    if not isinstance(state, dict) or not {"model", "optimizer", "step"} <= set(state):
        raise BadCheckpoint(f"{path} is no checkpoint of mimkit")
    if other := difference(identity_of(path.parents[1]), state.get("identity", {})):
        raise BadCheckpoint(f"checkpoint {path} belongs to another run ({other})")
    # Of the encoder alone: what a masker remembers may be no number yet.
    if bad := not_finite({key: local(value) for key, value in state["model"].items() if key.startswith("encoder.")}):
        raise BadCheckpoint(f"checkpoint {path} holds weights that are not finite ({bad})")
    if "format" not in state:
        state["model"] = rename_tensors(state["model"])
    return state


def _read_file(path: Path, device: torch.device | str, *, shared: bool) -> Any:
    with open_regular(path) as file:
        with zipfile.ZipFile(file) as archive:  # torch.save notes checksums, torch.load does not look at them
            damaged = archive.testzip()
        if damaged is not None:
            raise Damaged(f"checksum of {damaged}")
        if shared:  # each process wants its share alone: those of a host have the pages of the file in common
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        file.seek(0)
        return torch.load(file, map_location=device, weights_only=True)


def set_bad_aside(folder: Path) -> list[str]:
    """Give checkpoints that are newer than the newest good one another name; what is wrong with each.

    Raises BadCheckpoint when there are checkpoints and none is good: a run does not begin anew without a word.
    """
    bad: list[tuple[Path, str]] = []
    for path in reversed(checkpoints(folder)):
        try:
            _read(path, "cpu")
        except BadCheckpoint as error:
            bad.append((path, str(error)))
        else:
            break
    else:
        if bad:
            raise BadCheckpoint(f"{bad[0][1]}: remove it, and the run begins anew, or bring back a good one")
    for path, _ in bad:
        aside = path.with_name(path.name + ".bad")
        if aside.is_dir():
            shutil.rmtree(aside)
        path.rename(aside)  # as the newest it would push good ones out
    return [reason for _, reason in bad]


def restore(path: Path, task: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> tuple[int, float]:
    """Load a checkpoint into the task and its optimizer; returns the steps and seconds behind it."""
    state = load_checkpoint(path, device, shared_tensors(task, optimizer))
    try:
        load_whole(task, optimizer, state["model"], state["optimizer"])
        return int(state["step"]), float(state["seconds"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise BadCheckpoint(
            f"checkpoint {path} belongs to another run ({str(error).splitlines()[0]}): remove it, and the run goes on "
            "from the checkpoint before it, or from the start"
        ) from error
