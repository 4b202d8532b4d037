"""Cost: runs enter; what a step of each costs for one picture leaves, in FLOPs or in seconds on this machine."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mimkit.core.batch import Batch
from mimkit.data.pictures import Subset, sample
from mimkit.guidance.sampler import MaskSampler
from mimkit.masks.informed import ModelMasker
from mimkit.methods.base import MaskedConfig, Method
from mimkit.model.patches import patchify
from mimkit.train.machine import Engine
from mimkit.train.prepare import Prepared, Pretrain

PROGRESS_POINTS = tuple((number + 0.5) / 8 for number in range(8))  # of training, at which a step is counted or timed
COUNTED = 8  # pictures of the step whose FLOPs are counted
READ = 1024  # pictures that timed steps are made of


def count_flops(configs: Sequence[Pretrain]) -> list[float]:
    """FLOPs of a step for one picture, the mean over training: matrix products and convolutions.

    What a masker computes to see is included, as far as it does not keep its score maps for several epochs.
    """
    return [_flops_of_a_step(config) for config in configs]


def _flops_of_a_step(config: Pretrain) -> float:
    prepared = Prepared(config)
    task, batch = prepared.task, prepared.sample(COUNTED)
    engine = Engine(device=torch.device("cpu"), precision="float32", attention="plain", compile=False, threads=1)
    engine.set_attention(task)  # of fused attention the counter adds what it computes again in the backward pass
    saved = cached_fraction(config)
    costs = []
    for progress in PROGRESS_POINTS:
        step = flops_per_picture(engine.step, task, batch, progress, True, 1.0)
        looking = flops_per_picture(compute_score_maps, task, batch, progress)
        costs.append(step - saved * looking)
    return statistics.mean(costs)


@dataclass
class TimedRun:
    """One of several runs whose steps are timed in turns."""

    engine: Engine
    task: Method
    module: nn.Module
    batches: Iterator[Batch]
    saved: float
    """Fraction of the time for score maps that a cache saves."""
    seconds: list[float] = field(default_factory=list)
    """For one picture, step by step."""

    def step(self, progress: float) -> None:
        """Time one step, and what its masker computes to see."""
        torch.set_num_threads(self.engine.threads)
        start = time.perf_counter()
        batch = next(self.batches)
        self.engine.step(self.module, batch, progress, True, 1.0).loss.item()
        end = time.perf_counter()
        with self.engine.autocast():
            compute_score_maps(self.task, batch, progress)
        torch.empty(1, device=self.engine.device).fill_(0).item()  # a GPU is waited for
        looking = time.perf_counter() - end
        self.seconds.append((end - start - self.saved * looking) / len(batch.images))


def time_step(configs: Sequence[Pretrain]) -> list[float]:
    """Seconds of a step for one picture, its views included: the mean over rounds in which all take turns."""
    runs = [_open_timed(config) for config in configs]
    for progress in (0.0, *PROGRESS_POINTS):
        for run in runs:
            run.step(progress)
    return [statistics.mean(run.seconds[1:]) for run in runs]  # the first one warms up


def _open_timed(config: Pretrain) -> TimedRun:
    prepared, device = Prepared(config), config.machine.find_device()
    count = prepared.timing_count(prepared.micro_batch(device, 1))
    engine = Engine.choose(config.machine, device, prepared.task, lambda: prepared.sample(count), None)
    module = engine.wrap(prepared.task)
    few = Subset(prepared.pictures, torch.tensor(sample(len(prepared.pictures), READ)))
    timed = Prepared(replace(config, batch_size=count), pictures=few)
    timed.statistics = prepared.statistics  # of all pictures, which were read for them already
    loader = timed.loader(device, micro_batch=count, workers=config.machine.readers(), rank=0, world=1)
    batches = loader.micro_batches(0, len(PROGRESS_POINTS) + 1)
    return TimedRun(engine, prepared.task, module, batches, cached_fraction(config))


def flops_per_picture(work: Callable[..., Any], *arguments: Any) -> float:
    """What `work` counts for one picture."""
    with FlopCounterMode(display=False) as counter:
        work(*arguments)
    return counter.get_total_flops() / COUNTED


def compute_score_maps(task: Method, batch: Batch, progress: float) -> None:
    """Only what a masker computes to see this batch, unless the method computes that anyway."""
    for module in task.modules():
        if isinstance(module, MaskSampler) and not module.uses_method_teacher(progress):
            patches = patchify(batch.images, task.encoder.patch)
            module.score_maps(task.encoder, patches, replace(batch, crop=None), progress)


def cached_fraction(config: Pretrain) -> float:
    """Fraction of its seeing that a masker saves when it keeps its score maps for several epochs."""
    guide = config.method.masker.guide if isinstance(config.method, MaskedConfig) else None
    return 1 - 1 / max(1, guide.refresh) if isinstance(guide, ModelMasker) else 0.0
