"""Progress: what each step produced enters; metrics, one line for the eye and the stop at bad numbers leave."""

import math
import sys
import time
from collections.abc import Callable, Container
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mimkit.core import distributed
from mimkit.core.batch import Batch, Step
from mimkit.core.errors import UserError


class Recorder:
    """Collects on the device, reads it every `every` steps and at the steps of a look.

    Args:
        total, batch_size: of the run, to say how long it will take.
        looks: numbers of done steps after which `look` measures; what it returns joins that step's line.
        write: takes a line of metrics, in the main process.
        skip: takes the bad pictures that all processes met.
        name_pictures: numbers of pictures to where they lie.
        last_checkpoint: says which checkpoint a stopped run can go on from.
    """

    def __init__(
        self,
        *,
        total: int,
        batch_size: int,
        every: int,
        evals: Container[int],
        look: Callable[[int], dict[str, float]],
        write: Callable[[dict[str, Any]], None],
        skip: Callable[[tuple[tuple[int, str], ...]], None],
        name_pictures: Callable[[list[int]], str],
        last_checkpoint: Callable[[], str],
        precision: str,
    ) -> None:
        self.total, self.batch_size, self.every = total, batch_size, every
        self.evals, self.look, self.write, self.skip = evals, look, write, skip
        self.name_pictures, self.last_checkpoint, self.precision = name_pictures, last_checkpoint, precision
        self.waited = 0.0
        self.line = Line(total)
        self._taken: list[tuple[int, Tensor, Tensor]] = []  # step, share of its loss, pictures; of micro batches
        self._logs: dict[str, Tensor] = {}
        self._skipped: list[tuple[int, str]] = []
        self._noted: dict[str, float] = {}
        self._norm: Tensor | None = None
        self._rate = 0.0
        self._clock = time.perf_counter()

    def due(self, step: int) -> bool:
        """Whether this step ends a window."""
        return (step + 1) % self.every == 0 or step + 1 in self.evals

    def take(self, step: int, batch: Batch, result: Step, fraction: float) -> None:
        """One micro batch of a step."""
        self._taken.append((step, result.loss.detach() * fraction, batch.index))
        self._logs = {k: v.detach() for k, v in result.logs.items()}
        self._skipped += batch.skipped

    def note(self, found: dict[str, float]) -> None:
        """Numbers measured before this step; they join the next line."""
        self._noted |= found

    def end(self, step: int, norm: Tensor | None, rate: float) -> None:
        """The step is over; reads the device when a window ends."""
        self._norm, self._rate = norm, rate
        if self.due(step):
            self.flush()

    def flush(self) -> None:
        """Read the window, stop at numbers that are not finite, look if due, write one line. Collective."""
        if not self._taken:
            return
        losses = distributed.gather(torch.stack([loss for _, loss, _ in self._taken])).double().cpu()
        self._stop_at_bad_loss(losses)
        for part in distributed.gather_objects(tuple(self._skipped)):
            self.skip(part)
        seconds = time.perf_counter() - self._clock
        step, count = self._taken[-1][0], len({step for step, _, _ in self._taken})
        record = {
            "step": step + 1,
            "loss": losses.mean(0).sum().item() / count,
            "learning_rate": self._rate,
            "images_per_second": round(count * self.batch_size / seconds, 2),
            "data_wait": round(self.waited / seconds, 4),
        }
        if self._norm is not None:
            record["gradient_norm"] = self._norm.item()
            if not math.isfinite(record["gradient_norm"]):
                raise UserError(f"the gradient is not finite at step {step + 1}; {self._advice()}")
        record |= {k: v.item() for k, v in self._logs.items()} | self._noted
        if step + 1 in self.evals:
            record |= self.look(step + 1)
        if distributed.is_main():
            self.write(record)
            self.line.show(record, (self.total - step - 1) * seconds / count)
        self._taken, self._skipped, self._norm, self._noted = [], [], None, {}
        self.waited, self._clock = 0.0, time.perf_counter()

    def skip_time(self, seconds: float) -> None:
        """Leave time spent on something else (saving) out of the speed."""
        self._clock += seconds

    def refuse_bad_weights(self, step: int, tensors: list[Tensor]) -> None:
        """A loss can be finite when the step after it was not: what is saved must be good."""
        if not torch.nn.utils.get_total_norm(tensors).isfinite():
            raise UserError(f"the weights are no longer finite after step {step}; {self._advice()}")

    def _stop_at_bad_loss(self, losses: Float[Tensor, "world micro"]) -> None:
        if losses.isfinite().all():
            return
        place = int((~losses.isfinite()).any(0).nonzero()[0])  # the first in time
        rank = int((~losses[:, place].isfinite()).nonzero()[0])
        step, _, index = self._taken[place]
        pictures = distributed.gather_objects(index[:3].tolist())[rank]
        raise UserError(
            f"the loss is {losses[rank, place].item()} at step {step + 1} (rank {rank}, pictures "
            f"{self.name_pictures(pictures)}, ...); {self._advice()}"
        )

    def _advice(self) -> str:
        first = "a lower --optimizer.base-lr" if self.precision == "float32" else "--machine.precision float32"
        return f"{self.last_checkpoint()}; try {first}, --optimizer.clip 1.0 or a longer warm-up in a new --run"


class Line:
    """One progress line: rewritten on a terminal, a new line now and then in a log."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.terminal = sys.stderr.isatty()
        self._shown = -math.inf

    def show(self, record: dict[str, Any], left: float) -> None:
        """Print the line unless the last one is too fresh; the last step always prints, and so does a warning."""
        if "warning" in record:
            self.close()
            print(record["warning"], file=sys.stderr, flush=True)
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
