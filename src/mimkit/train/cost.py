"""Work: runs enter; what a step of each costs for one picture leaves, in FLOPs or in seconds on this machine."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mimkit.core.batch import Batch
from mimkit.data.pictures import Subset, sample
from mimkit.guidance.sampler import MaskSampler
from mimkit.masks.informed import ModelMasker
from mimkit.methods.base import MaskedConfig
from mimkit.model.patches import patchify
from mimkit.train.machine import Engine
from mimkit.train.prepare import Prepared, Pretrain

PROGRESS_POINTS = tuple((number + 0.5) / 8 for number in range(8))  # of training, at which a step is weighed or timed
WEIGHED = 8  # pictures of the step that is weighed
READ = 1024  # pictures that timed steps are made of


def count_flops(configs: Sequence[Pretrain]) -> list[float]:
    """FLOPs of a step for one picture, the mean over training, looks included: matrix products and convolutions."""
    weights = []
    for config in configs:
        ready = Prepared(config)
        task, batch = ready.task, ready.sample(WEIGHED)
        engine = Engine(device=torch.device("cpu"), precision="float32", attention="plain", compile=False, threads=1)
        engine.set_attention(task)  # the counter adds to fused attention what it computes again in the backward pass
        saved = unlooked(config)
        steps = (
            flops(engine.step, task, batch, m, True, 1.0) - saved * flops(look, task, batch, m) for m in PROGRESS_POINTS
        )
        weights.append(statistics.mean(steps))
    return weights


def time_step(configs: Sequence[Pretrain]) -> list[float]:
    """Seconds of a step for one picture, its views included: the mean over rounds in which all take turns."""
    timed = []
    for config in configs:
        ready, device = Prepared(config), config.machine.find_device()
        count = ready.timed(ready.micro_batch(device, 1))
        engine = Engine.choose(config.machine, device, ready.task, lambda one=ready.sample(count): one, None)
        ready.config = replace(config, batch_size=count)
        ready.pictures = Subset(ready.pictures, torch.tensor(sample(len(ready.pictures), READ)))
        task, how = engine.wrap(ready.task), dict(rank=0, world=1, workers=config.machine.readers())
        loader = ready.loader(device, micro_batch=count, log=lambda line: None, **how)
        timed.append((engine, task, loader.micro_batches(0, len(PROGRESS_POINTS) + 1), unlooked(config)))
    rows: list[list[float]] = [[] for _ in configs]
    for moment in (0.0, *PROGRESS_POINTS):
        for row, (engine, task, batches, saved) in zip(rows, timed, strict=True):
            torch.set_num_threads(engine.threads)
            start = time.perf_counter()
            batch = next(batches)
            engine.step(task, batch, moment, True, 1.0).loss.item()
            end = time.perf_counter()
            with engine.autocast():
                look(engine.plain(task), batch, moment)
            torch.empty(1, device=engine.device).fill_(0).item()  # a GPU is waited for
            looked = time.perf_counter() - end
            row.append((end - start - saved * looked) / len(batch.images))
    return [statistics.mean(row[1:]) for row in rows]  # the first one warms up


def flops(work: Callable[..., Any], *asked: Any) -> float:
    """What this counts for one picture."""
    with FlopCounterMode(display=False) as counter:
        work(*asked)
    return counter.get_total_flops() / WEIGHED


def look(task: Any, batch: Batch, moment: float) -> None:
    """Only what a masker looks at for this batch, unless the method has looked anyway."""
    for part in task.modules():
        if isinstance(part, MaskSampler) and not part.uses_method_teacher(moment):
            part.score_maps(task.encoder, patchify(batch.images, task.encoder.patch), replace(batch, crop=None), moment)


def unlooked(config: Pretrain) -> float:
    """Share of the looks that a masker saves when it keeps its maps for several epochs."""
    guide = config.method.masker.guide if isinstance(config.method, MaskedConfig) else None
    return 1 - 1 / max(1, guide.refresh) if isinstance(guide, ModelMasker) else 0.0
