"""Recorder: what each step produced enters; metrics, one line for the eye and the stop at bad numbers leave."""

import math
import sys
import time
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mimkit.core import distributed
from mimkit.core.errors import UserError
from mimkit.data.pictures import Pictures
from mimkit.train.loop import Callback
from mimkit.train.metrics_log import MetricsLog
from mimkit.train.online import OnlineEvaluation
from mimkit.train.run_folder import last_good
from mimkit.train.sharding import local
from mimkit.train.skipped import SkippedPictures
from mimkit.train.training import StepOutputs, Training


class Window:
    """The steps since the last line of metrics, on the device until `Recorder.flush` reads them."""

    def __init__(self) -> None:
        self.outputs: list[tuple[int, StepOutputs]] = []
        self.notes: dict[str, float] = {}  # numbers measured before a step, that join the line as they are
        self.start = time.perf_counter()

    def losses(self) -> Float[Tensor, "world micro"]:
        """The loss of every micro batch of every process, divided by the micro batches of a step.

        Summed over the window and divided by its steps that is the mean loss of a step.
        """
        mine = [loss / len(outputs.losses) for _, outputs in self.outputs for loss in outputs.losses]
        return distributed.gather(torch.stack(mine)).double().cpu()

    def logs(self) -> dict[str, float]:
        """The method's numbers, averaged as the loss: over the steps, the micro batches and the processes.

        A number that only some steps give, as those of a masker that has started since, is averaged over these. Must be
        called by every process.
        """
        values: dict[str, list[Tensor]] = {}
        for _, outputs in self.outputs:
            for logs in outputs.logs:
                for name, value in logs.items():
                    values.setdefault(name, []).append(value)
        names = sorted({name for mine in distributed.gather_objects(tuple(values)) for name in mine})
        if not names:
            return {}
        device = self.outputs[-1][1].losses[0].device
        unknown = torch.tensor(torch.nan, device=device)  # of a process that has no such number
        means = [torch.stack(values[name]).float().mean() if name in values else unknown for name in names]
        return dict(zip(names, distributed.gather(torch.stack(means)).nanmean(dim=0).tolist(), strict=True))

    def locate(self, number: int) -> tuple[int, Tensor]:
        """Step and pictures of a micro batch, by its number in the window."""
        micro_batches = [(step, index) for step, outputs in self.outputs for index in outputs.index]
        return micro_batches[number]


class Recorder(Callback):
    """Keeps what steps produced on the device and reads it when a line of metrics is due.

    Loss and logs are means over all steps since the line before, learning rate and gradient norm are the last step's.
    At the steps of an evaluation its numbers join the line.
    """

    def __init__(
        self,
        log: MetricsLog,
        evaluation: OnlineEvaluation,
        skipped: SkippedPictures,
        pictures: Pictures,
        *,
        total: int,
        batch_size: int,
        precision: str,
    ) -> None:
        """`total` steps of `batch_size` pictures: to say how long the run will take."""
        self.log, self.evaluation, self.skipped, self.pictures = log, evaluation, skipped, pictures
        self.total, self.batch_size, self.precision = total, batch_size, precision
        self.line = ProgressLine(total)
        self.window = Window()

    def after_step(self, training: Training, step: int, outputs: StepOutputs) -> None:
        self.window.outputs.append((step, outputs))
        if training.log_steps.logs(step):
            self.flush(training)

    def note(self, numbers: dict[str, float]) -> None:
        """Numbers measured before this step; they join the next line."""
        self.window.notes |= numbers

    def exclude_time(self, seconds: float) -> None:
        """Leave time that went into something else, as saving, out of the speed of the open window."""
        self.window.start += seconds

    def flush(self, training: Training) -> None:
        """Read the window, stop at numbers that are not finite, evaluate if due, write one line.

        Must be called by every process.
        """
        window = self.window
        if not window.outputs:
            return
        losses = window.losses()
        self._list_skipped()  # first: bad pictures may be why a loss is bad
        self._stop_at_bad_loss(losses)
        step, last = window.outputs[-1]
        count = len(window.outputs)
        seconds = time.perf_counter() - window.start
        data_wait = sum(outputs.data_wait for _, outputs in window.outputs)
        record = {
            "step": step + 1,
            "loss": losses.mean(0).sum().item() / count,
            "learning_rate": last.lr,
            "images_per_second": round(count * self.batch_size / seconds, 2),
            "data_wait": round(data_wait / seconds, 4),
        }
        record |= self._gradient_norm(step, last) | window.logs() | window.notes
        if training.log_steps.evaluates(step):
            record |= self.evaluation.measure(step + 1)
        distributed.on_main(lambda: self.log.write(record, self.evaluation.warning(record)), self.evaluation.device)
        if distributed.is_main():
            self.line.show(record, (self.total - step - 1) * seconds / count, final=step + 1 == training.last)
        self.window = Window()

    def _gradient_norm(self, step: int, outputs: StepOutputs) -> dict[str, float]:
        """Of the last step; gradients are averaged over the processes already, so all of them see the same number."""
        if outputs.gradient_norm is None:
            return {}
        norm = outputs.gradient_norm.item()
        if not math.isfinite(norm):
            raise UserError(f"the gradient is not finite at step {step + 1}; {self._advice()}")
        return {"gradient_norm": norm}

    def _list_skipped(self) -> None:
        """Every process lists the bad pictures of all, so that all stop when there are too many."""
        mine = tuple(entry for _, outputs in self.window.outputs for entry in outputs.skipped)
        for entries in distributed.gather_objects(mine):
            self.skipped.add(entries)

    def refuse_bad_weights(self, step: int, tensors: list[Tensor]) -> None:
        """What is saved must be good: a loss is computed before the update, which may have left numbers that are none.

        Args:
            step: how many steps are done.
        """
        mine = [share for t in tensors if t.is_floating_point() and (share := local(t)).numel()]
        largest = torch._foreach_norm(mine or [torch.zeros(1, device=self.evaluation.device)], ord=torch.inf)
        bad = (~torch.stack([norm.float() for norm in largest]).isfinite()).sum()
        if distributed.total(bad).item():  # each process may hold a share alone
            raise UserError(f"the weights are no longer finite after step {step}; {self._advice()}")

    def _stop_at_bad_loss(self, losses: Float[Tensor, "world micro"]) -> None:
        if losses.isfinite().all():
            return
        first = int((~losses.isfinite()).any(0).nonzero()[0])  # micro batch of the window
        rank = int((~losses[:, first].isfinite()).nonzero()[0])
        step, index = self.window.locate(first)
        numbers = distributed.gather_objects(index[:3].tolist())[rank]
        names = ", ".join(self.pictures.where(number) for number in numbers)
        raise UserError(
            f"the loss is {losses[rank, first].item()} at step {step + 1} (rank {rank}, pictures {names}, ...); "
            f"{self._advice()}"
        )

    def _advice(self) -> str:
        remedy = "a lower --optimizer.base-lr" if self.precision == "float32" else "--machine.precision float32"
        good = last_good(self.log.run.folder)
        return f"{good}; try {remedy}, --optimizer.clip 1.0 or a longer warm-up in a new --run"


class ProgressLine:
    """One progress line: rewritten on a terminal, a new line now and then in a log."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.terminal = sys.stderr.isatty()
        self._shown = -math.inf

    def show(self, record: dict[str, Any], seconds_left: float, *, final: bool = False) -> None:
        """Print the line unless the one before is too fresh; the final step always prints, and so does a warning."""
        if "warning" in record:
            self.close()
            print(record["warning"], file=sys.stderr, flush=True)
        now = time.perf_counter()
        if now - self._shown < (0.2 if self.terminal else 10.0) and not final:
            return
        self._shown = now
        text = (
            f"step {record['step']}/{self.total}  loss {record['loss']:.4f}  "
            f"{record['images_per_second']:.0f} images/s  data wait {record['data_wait']:.0%}  "
            f"left {duration(seconds_left)}"
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
