"""The only training loop. A task, batches, an optimizer and a schedule enter; a trained task leaves."""

import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from mimkit.core import distributed
from mimkit.core.batch import Batch
from mimkit.core.randomness import integer
from mimkit.train.machine import Engine
from mimkit.train.optimizer import set_decay, set_rates
from mimkit.train.recorder import Recorder


def fit(
    task: nn.Module,
    batches: Iterator[Batch],
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[float], float],
    engine: Engine,
    recorder: Recorder,
    prepare: Callable[[int], None],
    pause: Callable[[int], bool],
    *,
    seed: int,
    first: int,
    last: int,
    total: int,
    accumulate: int = 1,
    clip: Callable[[Sequence[Tensor]], Tensor | None] = lambda parameters: None,
) -> int:
    """Train steps `first .. last - 1` of a schedule over `total` steps; returns the number of steps done.

    Args:
        task: as `engine.wrap` returned it.
        batches: micro batches, `accumulate` of them a step.
        schedule: progress in [0, 1) to a factor for the learning rates.
        recorder: takes what each step produced; reads the device only when it logs.
        prepare: called with the number of each step before it.
        pause: called with the number of steps done; saves and looks when due, and returns True to stop.
        clip: shortens the gradients of these parameters and returns their norm before, or None where it does nothing.
    """
    task.train()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(first, last):
        progress = step / total
        prepare(step)
        torch.manual_seed(integer("step", seed, step, distributed.rank()))  # drop path and dropout have an address too
        set_rates(optimizer, schedule(progress))
        set_decay(optimizer, progress)
        for micro in range(accumulate):
            asked = time.perf_counter()
            batch = next(batches)
            recorder.waited += time.perf_counter() - asked
            result = engine.step(task, batch, progress, micro == accumulate - 1, 1 / accumulate)
            recorder.take(step, batch, result, 1 / accumulate)
        engine.plain(task).before_step(progress)
        norm = clip(parameters)
        if norm is None and recorder.due(step):
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        engine.plain(task).after_step(progress)
        recorder.end(step, norm, max(group["lr"] for group in optimizer.param_groups))
        if pause(step + 1):
            return step + 1
    return last
