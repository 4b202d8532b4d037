"""Saver: shares of a run's state enter; a folder in checkpoints/ leaves, written while training goes on."""

import shutil
import time
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist

from mimkit.core import distributed
from mimkit.core.errors import UserError
from mimkit.core.pieces import Piece, write_pieces
from mimkit.core.state_folder import pieces_of, split, write_state
from mimkit.train.checkpoint import flush_folder, place, prune, remove
from mimkit.train.run_folder import disk_errors

PATIENCE = 15.0  # seconds: a network's disk may show a new file that late


class Saver:
    """Writes the checkpoints of a sharded run in a thread, at most one at a time.

    Its processes talk in a group of their own: in the training's, what two threads send would get mixed up. Every
    process makes one, and calls `save`, `wait` and `pending` together with the others.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        """Of the run in `folder`, of which the newest `keep` checkpoints stay."""
        self.folder, self.keep = folder, keep
        group = dist.new_group(backend="gloo")
        assert isinstance(group, dist.ProcessGroup)  # of all processes
        self.group = group
        self.thread = ThreadPoolExecutor(1, "saver")
        self.writing: Future[None] | None = None

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Copy this process's share of the state, wait for the save before, and begin to write.

        Raises the errors of the save before.
        """
        self.wait()
        tensors, rest = split(state)
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        self.writing = self.thread.submit(self._write, step, pieces_of(tensors), rest, shapes)

    @property
    def idle(self) -> bool:
        """Whether the last save is complete."""
        return self.writing is None or (self.writing.done() and not self.failed)

    @property
    def failed(self) -> bool:
        """Whether a save has ended with an error, which `wait` would raise."""
        return self.writing is not None and self.writing.done() and self.writing.exception() is not None

    def wait(self) -> None:
        """Wait until the last save is complete. Raises UserError where it cannot be, as on a full disk."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    @contextmanager
    def pending(self) -> Generator[None]:
        """Nothing is being written any more when the block is left, and no error is lost, but for that of the block."""
        try:
            yield
        except BaseException:
            with suppress(Exception):
                self.wait()
            raise
        else:
            self.wait()
        finally:
            self.thread.shutdown()

    def _write(
        self, step: int, pieces: Mapping[str, Piece], rest: dict[str, Any], shapes: dict[str, list[int]]
    ) -> None:
        """Each process its file, then the main process what makes a checkpoint of them; in the thread."""
        path = place(self.folder, step, "")
        beside = path.with_name(path.name + ".tmp")
        name = f"shard-{distributed.rank() + 1:05d}.safetensors"

        def write() -> dict[str, str]:
            with disk_errors(self.folder):
                beside.mkdir(parents=True, exist_ok=True)
                return {name: write_pieces(beside / name, pieces)} if pieces else {}

        def complete(sums: dict[str, str]) -> None:
            await_files(beside, sums)
            with disk_errors(self.folder):
                write_state(beside, rest, shapes, sums)
                flush_folder(beside)
                if path.exists():
                    remove(path)
                beside.rename(path)
                flush_folder(path.parent)
                prune(self.folder, self.keep)

        try:
            files = distributed.together(write, self.group)
            sums = {name: checksum for file in files for name, checksum in file.items()}
            distributed.together(lambda: complete(sums) if distributed.is_main() else None, self.group)
        except BaseException:
            if distributed.is_main():
                shutil.rmtree(beside, ignore_errors=True)
            raise


def await_files(folder: Path, names: Iterable[str]) -> None:
    """Wait for files that other hosts have written. Raises UserError where one does not appear."""
    until = time.monotonic() + PATIENCE
    for name in names:
        while not (folder / name).exists():
            if time.monotonic() > until:
                raise UserError(
                    f"{folder / name}, which another process has written, cannot be seen here: with machine.sharding "
                    "the run folder has to lie on a disk that all hosts share, so name another --run"
                )
            time.sleep(0.1)
