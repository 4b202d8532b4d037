"""Training: a task, its optimizer, its engine and its batches enter; one step after the other leaves."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mimkit.core import distributed
from mimkit.core.batch import Batch, Step
from mimkit.core.randomness import integer
from mimkit.methods.base import Method
from mimkit.train.machine import Engine
from mimkit.train.optimizer import OptimizerConfig, set_decay, set_lr
from mimkit.train.sharding import total_of


@dataclass(frozen=True)
class Span:
    """Which steps are trained: from `first` to before `last`, of a schedule over `total`."""

    first: int
    last: int
    total: int


@dataclass(frozen=True)
class LogSteps:
    """After which steps (counted from 0) a line of metrics is written and features are evaluated."""

    every: int
    """Steps between lines."""
    evals: frozenset[int]
    """Numbers of steps done at which features are evaluated."""

    @staticmethod
    def spread(total: int, every: int, evals: int) -> "LogSteps":
        """Evaluations at equal distances, the last one after the last step."""
        return LogSteps(every, frozenset(round(total * i / evals) for i in range(1, evals + 1)))

    def logs(self, step: int) -> bool:
        """Whether a line is written after this step."""
        return (step + 1) % self.every == 0 or self.evaluates(step)

    def evaluates(self, step: int) -> bool:
        """Whether features are evaluated after this step."""
        return step + 1 in self.evals


@dataclass
class StepOutputs:
    """What one step gave, micro batch by micro batch; the losses and logs stay on the device."""

    losses: list[Tensor] = field(default_factory=list)
    logs: list[dict[str, Tensor]] = field(default_factory=list)
    index: list[Tensor] = field(default_factory=list)
    """Which pictures were seen."""
    skipped: list[tuple[int, str]] = field(default_factory=list)
    """Bad pictures that were met, with the reasons."""
    data_wait: float = 0.0
    """Seconds in which this process waited for batches."""
    lr: float = 0.0
    """Largest learning rate of the step."""
    gradient_norm: Tensor | None = None
    """Before clipping; None where nobody asks for it."""

    def add(self, batch: Batch, result: Step) -> None:
        """One micro batch; its images and its graph are not kept."""
        self.losses.append(result.loss.detach())
        self.logs.append({name: value.detach() for name, value in result.logs.items()})
        self.index.append(batch.index)
        self.skipped += batch.skipped


class Training:
    """A run while it trains. `task` is the method, `module` what the engine made of it (compiled, distributed)."""

    def __init__(
        self,
        task: Method,
        module: nn.Module,
        engine: Engine,
        optimizer: torch.optim.Optimizer,
        optimizer_config: OptimizerConfig,
        schedule: Callable[[float], float],
        span: Span,
        log_steps: LogSteps,
        *,
        seed: int,
    ) -> None:
        """`schedule`: from the progress in [0, 1) to a factor for the learning rates."""
        self.task, self.module, self.engine = task, module, engine
        self.optimizer, self.clip_gradients, self.schedule = optimizer, optimizer_config.clip_gradients, schedule
        self.first, self.last, self.total = span.first, span.last, span.total
        self.log_steps, self.seed = log_steps, seed
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.stop = False

    def feed(self, batches: Iterator[Batch], accumulate: int) -> None:
        """Where micro batches come from, and how many of them a step takes."""
        self.batches, self.accumulate = batches, accumulate

    def forward_backward(self, step: int) -> StepOutputs:
        """Gradients of one step, summed over its micro batches."""
        progress = step / self.total
        # Drop path and dropout draw from torch's generator: so they have an address too.
        torch.manual_seed(integer("step", self.seed, step, distributed.rank()))
        set_lr(self.optimizer, self.schedule(progress))
        set_decay(self.optimizer, progress)
        outputs = StepOutputs(lr=max(group["lr"] for group in self.optimizer.param_groups))
        for micro in range(self.accumulate):
            start = time.perf_counter()
            batch = next(self.batches)
            outputs.data_wait += time.perf_counter() - start
            is_last = micro == self.accumulate - 1
            result = self.engine.step(self.module, batch, progress, is_last, 1 / self.accumulate)
            outputs.add(batch, result)
        return outputs

    def update(self, step: int, outputs: StepOutputs) -> None:
        """Clip the gradients and move the weights."""
        progress = step / self.total
        self.task.before_step(progress)
        outputs.gradient_norm = self.clip_gradients(self.parameters)
        if outputs.gradient_norm is None and self.log_steps.logs(step):
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            outputs.gradient_norm = torch.nn.utils.get_total_norm(gradients)
        if outputs.gradient_norm is not None:
            outputs.gradient_norm = total_of(outputs.gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.task.after_step(progress)
