"""The log of metrics: records enter; lines of metrics.jsonl and TensorBoard's files leave."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mimkit.train.run_folder import RunFolder, disk_errors

NO_CURVE = ("step", "seconds", "warning")  # parts of a record that TensorBoard does not draw


class MetricsLog:
    """Writes records, with the seconds that the run took so far and the first warning of a collapse.

    Args:
        run: where they are written, in the main process alone.
        seconds: that earlier parts of the run took.
        tensorboard: write its files too, from the step after `first` on, if it is installed.
    """

    def __init__(self, run: RunFolder, *, seconds: float, tensorboard: bool, first: int) -> None:
        self.run = run
        self._start = time.perf_counter() - seconds
        self._board = open_tensorboard(run.folder, first) if tensorboard else None
        self.warnings: dict[str, str] = {}  # of an earlier part of the run, too
        for record in run.metrics():
            if "warning" in record:
                self.warnings["warning"] = record["warning"]

    @property
    def seconds(self) -> float:
        """That the run took so far, all parts together."""
        return time.perf_counter() - self._start

    def write(self, record: dict[str, Any], warning: str | None) -> None:
        """One line; a warning is written once in a run."""
        record["seconds"] = round(self.seconds, 3)
        if warning and not self.warnings:
            record["warning"] = self.warnings["warning"] = warning
        self.run.append(record)
        if self._board is None:
            return
        with disk_errors(self.run.folder):
            for name, value in record.items():
                if name not in NO_CURVE:
                    self._board.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """End TensorBoard's file."""
        if self._board is not None:
            with suppress(OSError):  # a full disk was reported already
                self._board.close()


def open_tensorboard(folder: Path, first: int) -> Any:
    """A TensorBoard writer when tensorboard is installed, else None."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    with disk_errors(folder):
        return SummaryWriter(str(folder / "tensorboard"), purge_step=first + 1)
