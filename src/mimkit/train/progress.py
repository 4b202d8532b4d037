"""Progress: what each step produced enters; metrics, one line for the eye and the stop at bad numbers leave."""

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mimkit import distributed
from mimkit.errors import UserError
from mimkit.task import Batch, Step


class Recorder:
    """Collects on the device, reads it every `every` steps."""

    def __init__(
        self,
        *,
        total: int,
        batch_size: int,
        every: int,
        write: Callable[[dict[str, Any]], None],
        skip: Callable[[tuple[tuple[int, str], ...]], None],
        name_pictures: Callable[[list[int]], str],
        last_checkpoint: Callable[[], str],
        precision: str,
    ) -> None:
        self.total, self.batch_size, self.every = total, batch_size, every
        self.write, self.skip = write, skip
        self.name_pictures, self.last_checkpoint, self.precision = name_pictures, last_checkpoint, precision
        self.waited = 0.0
        self.line = Line(total)
        self._steps: list[int] = []
        self._losses: list[Tensor] = []
        self._logs: dict[str, Tensor] = {}
        self._index: list[Tensor] = []
        self._norm: Tensor | None = None
        self._rate = 0.0
        self._clock = time.perf_counter()

    def due(self, step: int) -> bool:
        """Whether this step ends a window."""
        return (step + 1) % self.every == 0

    def take(self, step: int, batch: Batch, result: Step, share: float) -> None:
        """One micro batch of a step."""
        loss = result.loss.detach() * share
        if self._steps and self._steps[-1] == step:
            self._losses[-1] = self._losses[-1] + loss
        else:
            self._steps.append(step)
            self._losses.append(loss)
            self._index.append(batch.index)
            self._logs = {k: v.detach() for k, v in result.logs.items()}
        if batch.skipped:
            self.skip(batch.skipped)

    def end(self, step: int, norm: Tensor | None, rate: float) -> None:
        """The step is over; reads the device when a window ends."""
        self._norm, self._rate = norm if norm is not None else self._norm, rate
        if self.due(step):
            self.flush()

    def flush(self) -> None:
        """Read the window, stop at a loss that is not finite, write one line of metrics. Collective."""
        if not self._steps:
            return
        losses = distributed.mean(torch.stack(self._losses)).tolist()
        for step, loss, index in zip(self._steps, losses, self._index, strict=True):
            if not math.isfinite(loss):
                raise UserError(self._bad_loss(step, loss, index))
        seconds = time.perf_counter() - self._clock
        step, count = self._steps[-1], len(self._steps)
        speed = count * self.batch_size / seconds
        record = {
            "step": step + 1,
            "loss": sum(losses) / count,
            "learning_rate": self._rate,
            "images_per_second": round(speed, 2),
            "data_wait": round(self.waited / seconds, 4),
        }
        if self._norm is not None:
            record["gradient_norm"] = self._norm.item()
        record |= {k: v.item() for k, v in self._logs.items()}
        if distributed.is_main():
            self.write(record)
            self.line.show(record, (self.total - step - 1) * seconds / count)
        self._steps, self._losses, self._index, self._norm = [], [], [], None
        self.waited, self._clock = 0.0, time.perf_counter()

    def skip_time(self, seconds: float) -> None:
        """Leave time spent on something else (saving, looking) out of the speed."""
        self._clock += seconds

    def _bad_loss(self, step: int, loss: float, index: Tensor) -> str:
        advice = "a lower --optimizer.base-rate" if self.precision == "float32" else "--machine.precision float32"
        return (
            f"the loss is {loss} at step {step + 1} (rank {distributed.rank()}, pictures "
            f"{self.name_pictures(index[:3].tolist())}, ...); {self.last_checkpoint()}; try {advice}, "
            "--optimizer.clip 1.0 or a longer warm-up"
        )


class Line:
    """One progress line: rewritten on a terminal, a new line now and then in a log."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.terminal = sys.stderr.isatty()
        self._shown = -math.inf

    def show(self, record: dict[str, Any], left: float) -> None:
        """Print the line unless the last one is too fresh; the last step always prints."""
        now = time.perf_counter()
        if now - self._shown < (0.2 if self.terminal else 10.0) and record["step"] < self.total:
            return
        self._shown = now
        text = (
            f"step {record['step']}/{self.total}  loss {record['loss']:.4f}  "
            f"{record['images_per_second']:.0f} images/s  data wait {record['data_wait']:.0%}  left {duration(left)}"
        )
        if self.terminal:
            print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the rewritten line, so that what follows starts on its own."""
        if self.terminal and self._shown > -math.inf:
            print(file=sys.stderr, flush=True)
            self._shown = -math.inf


def duration(seconds: float) -> str:
    """Seconds in words a person reads: 45 s, 12 min, 3.4 h, 2.1 d."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.1f} d"
