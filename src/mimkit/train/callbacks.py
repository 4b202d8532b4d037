"""Callbacks: a step that begins or ends enters; looks before an epoch, checkpoints and the stop by a signal leave."""

import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from mimkit.core import distributed
from mimkit.core.batch import DatasetView
from mimkit.core.names import FORMAT
from mimkit.methods.base import Method
from mimkit.train.checkpoint import save_checkpoint
from mimkit.train.identity import identity_of
from mimkit.train.loop import Callback
from mimkit.train.machine import Machine
from mimkit.train.recorder import Recorder
from mimkit.train.run_folder import RunFolder, disk_errors
from mimkit.train.saver import Saver
from mimkit.train.sharding import Whole
from mimkit.train.training import StepOutputs, Training


class EpochStart(Callback):
    """Calls the task's `before_epoch`, which may run over pictures outside the batches, and logs what it returns."""

    def __init__(self, recorder: Recorder, dataset: DatasetView, *, count: int, batch_size: int) -> None:
        """`count` pictures are an epoch."""
        self.recorder, self.dataset, self.count, self.batch_size = recorder, dataset, count, batch_size

    def before_step(self, training: Training, step: int) -> None:
        epoch, previous = (step * self.batch_size // self.count, (step - 1) * self.batch_size // self.count)
        if epoch == previous:
            return
        start = time.perf_counter()
        with training.engine.looking(training.task):
            self.recorder.note(training.task.before_epoch(epoch, step / training.total, self.dataset))
        self.recorder.exclude_time(time.perf_counter() - start)


class StopSignal:
    """SIGINT and SIGTERM end a run after its step instead of in it; `caught` is the number of the first, or 0."""

    def __init__(self) -> None:
        self.caught = 0

    def catch(self, number: int) -> None:
        """Keep the first."""
        self.caught = self.caught or number

    @contextmanager
    def handling(self) -> Generator[None]:
        """Catch them within the block. Python allows that in the main thread alone; in another nothing is caught."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, lambda number, frame: self.catch(number)) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Checkpointer(Callback):
    """Saves when so many steps or minutes are over, after the last step, and when a signal asks to stop.

    All processes must decide alike, so they ask each other; that costs, so they ask about once a second.
    """

    def __init__(
        self,
        run: RunFolder,
        recorder: Recorder,
        machine: Machine,
        stop: StopSignal,
        export: Callable[[Method, int], None],
        publish: Callable[[int], None],
        whole: Whole,
        first: int,
    ) -> None:
        """What the main process calls with the steps behind it.

        Args:
            export: writes a task; after the checkpoint was begun.
            publish: sends the run to where it is mirrored; when checkpoint and export are complete.
        """
        self.run, self.recorder, self.machine, self.stop = run, recorder, machine, stop
        self.export, self.publish, self.whole, self.device = export, publish, whole, whole.device
        self._unpublished = 0  # steps behind the last export
        self.identity = identity_of(run.folder)
        self.saver = None if whole.sharding == "none" else Saver(run.folder, machine.keep)
        self.stopped_by = 0  # the number of the signal that all processes agreed to stop by
        self._saved_at = self._asked_at = time.perf_counter()
        self._asked_step, self._ask_every = first, 1

    def after_step(self, training: Training, step: int, outputs: StepOutputs) -> None:
        done = step + 1
        every = self.machine.save_every
        due = done == training.last or (every is not None and done % every == 0)
        if self._agree(done) or due:
            # Raises after a loss that is not finite. The recorder has seen this step: it stands before in the list.
            self.recorder.flush(training)
            start = time.perf_counter()
            self.save(training, done)
            self._saved_at = time.perf_counter()
            self.recorder.exclude_time(self._saved_at - start)
        if self._unpublished and (self.saver is None or self.saver.idle):
            with disk_errors(self.run.folder):
                self.publish(self._unpublished)
            self._unpublished = 0
        if self.stopped_by:
            training.stop = True

    def _agree(self, done: int) -> bool:
        """Whether a signal or the clock of any process asks for a checkpoint now; the same answer for all."""
        world = distributed.world()
        if world > 1 and done < self._asked_step + self._ask_every:
            return False
        now = time.perf_counter()
        # Of two different signals the larger number counts; which one does not matter.
        self.stopped_by = distributed.largest(self.stop.caught, self.device)
        late = now - self._saved_at > 60 * self.machine.save_minutes
        urgency = distributed.largest(2 if self.saver and self.saver.failed else int(late), self.device)
        if urgency == 2 and self.saver:
            self.saver.wait()  # raises why it failed, in every process
        if world > 1:
            elapsed = max(1e-6, now - self._asked_at)
            steps_per_second = distributed.largest(int((done - self._asked_step) / elapsed), self.device)
            # From a number that all processes share: they must agree at the same steps, or they would wait for ever.
            self._ask_every = max(1, min(steps_per_second, self.machine.log_every))
            self._asked_step, self._asked_at = done, now
        return self.stopped_by > 0 or urgency > 0

    def save(self, training: Training, done: int) -> None:
        """A checkpoint and the export of the same step; a UserError instead if a weight is not finite."""
        self.recorder.refuse_bad_weights(done, [*training.task.parameters(), *optimizer_tensors(training.optimizer)])
        task, optimizer = training.task, training.optimizer
        state = {
            "format": FORMAT,
            "identity": self.identity,
            "step": done,
            "seconds": self.recorder.log.seconds,
            "model": task.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        if self.saver:
            self.saver.save(done, state)
            if done == training.last or self.stopped_by:
                self.saver.wait()  # the last export comes after its checkpoint, as all do without shares

        def write(whole: Method) -> None:
            with disk_errors(self.run.folder):
                if not self.saver:
                    save_checkpoint(self.run.folder, done, state, self.machine.keep)
                self.export(whole, done)
                self._unpublished = done

        with self.whole.gathered() as whole:
            distributed.on_main(lambda: write(whole), self.device)

    @contextmanager
    def pending(self) -> Generator[None]:
        """Nothing is being written any more when the block is left."""
        with self.saver.pending() if self.saver else nullcontext():
            yield


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All tensors of an optimizer's state."""
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
