"""The only training loop. A Training and its callbacks enter; the same Training, further on, leaves."""

from collections.abc import Sequence

from mimkit.train.training import StepOutputs, Training


class Callback:
    """What happens around the steps, one job each. Steps are counted from 0; every process calls every callback."""

    def before_step(self, training: Training, step: int) -> None:
        """Before the batches of a step are asked for."""

    def after_step(self, training: Training, step: int, outputs: StepOutputs) -> None:
        """After the optimizer's step; sets `training.stop` to end the training here."""


def fit(training: Training, callbacks: Sequence[Callback]) -> int:
    """Train the steps from `training.first` to before `training.last`; returns the number of steps that are done."""
    training.task.train()
    for step in range(training.first, training.last):
        for callback in callbacks:
            callback.before_step(training, step)
        outputs = training.forward_backward(step)
        training.update(step, outputs)
        for callback in callbacks:
            callback.after_step(training, step, outputs)
        if training.stop:
            return step + 1
    return training.last
