"""Machine: settings that should not change results enter; an Engine that runs a task on this hardware leaves."""

import ctypes
import inspect
import os
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, cast, get_args

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from mimkit.core import distributed
from mimkit.core.batch import Batch, Step
from mimkit.core.errors import UserError, unknown, within
from mimkit.core.memory import cores
from mimkit.guidance.sampler import MaskSampler
from mimkit.methods.base import Task
from mimkit.train.sharding import Sharding, compile_blocks, recompute, resolve, shard

MOST_PROCESSES = 1024  # threads, or workers: systems break down under many more
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(kw_only=True, slots=True)
class Machine:
    """How a run uses the hardware. Nothing here should change results; precision does in the last digits."""

    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`; `auto` takes a GPU when there is one."""
    precision: str = "auto"
    """`float32` or `bfloat16` (autocast); `auto`: bfloat16 on GPUs, on CPUs whatever a one-off timing finds faster."""
    attention: str = "auto"
    """`fused` (scaled_dot_product_attention) or `plain` (matmul, softmax, matmul); `auto` times both on CPUs."""
    compile: bool | None = None
    """torch.compile; by default on GPUs alone, since compiling costs minutes on CPUs."""
    sharding: Sharding = "none"
    """What each of several processes holds: `none`: the whole model (DDP); `full`: a share of each weight, gradient and
    optimizer state, and weights are gathered block by block (FSDP2); `hybrid`: shares within each machine, and each
    machine a whole model (HSDP)."""
    recompute: bool = False
    """Keep only what enters each block and compute the rest again in the backward pass: far less memory, a third more
    computing."""
    threads: int | None = None
    """CPU threads; by default one or all, whichever a one-off timing finds faster."""
    workers: int | None = None
    """Processes that read pictures; by default as many as cores, at most 16, shared by the processes of a machine;
    0 reads in the training process."""
    micro_batch: int | None = None
    """Pictures a process handles at once; smaller ones save memory, the result is the same."""
    resident: bool | None = None
    """Keep all pictures in memory as one tensor; by default when they have one size and fit. Crops differ from
    streamed ones by rounding."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    save_minutes: float = 5.0
    """Minutes between checkpoints."""
    save_every: int | None = None
    """Steps between checkpoints, besides `save_minutes`."""
    keep: int = 2
    """Checkpoints to keep."""
    evals: int = 12
    """How often during training to look at it: online kNN, rank and spread of features, pictures of reconstructions;
    it warns when features have collapsed since the start."""
    tensorboard: bool = True
    """Write TensorBoard files when tensorboard is installed."""

    def check(self) -> None:
        """Refuse numbers and names that cannot be meant, before anything takes long."""
        least = {
            "log_every": 1,
            "keep": 1,
            "evals": 0,
            "threads": 1,
            "workers": 0,
            "micro_batch": 1,
            "save_every": 1,
        }
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise UserError(f"machine.{name} must be at least {bound}, got {value}")
        within(0, MOST_PROCESSES, **{"machine.threads": self.threads, "machine.workers": self.workers})
        if not self.save_minutes > 0:  # also of NaN
            raise UserError(f"machine.save_minutes must be above 0, got {self.save_minutes}")
        if self.precision not in ("auto", *PRECISIONS):
            raise unknown("precision", self.precision, ["auto", *PRECISIONS])
        if self.attention not in ("auto", "fused", "plain"):
            raise unknown("kind of attention", self.attention, ["auto", "fused", "plain"])
        if self.sharding not in get_args(Sharding):
            raise unknown("sharding", self.sharding, [*get_args(Sharding)])

    def readers(self) -> int:
        """Processes that read pictures for this process."""
        if self.workers is not None:
            return self.workers
        return min(16, max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))

    def find_device(self) -> torch.device:
        """The device of this process; under torchrun each process takes its own GPU."""
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise UserError(f"machine.device '{name}' is unknown: use cpu, cuda or cuda:N") from error
        if device.type not in ("cpu", "cuda"):
            raise UserError(f"machine.device '{name}' cannot train here: use cpu, cuda or cuda:N")
        if device.type == "cuda":
            if not torch.cuda.is_available():
                raise UserError("machine.device cuda: this torch sees no GPU; use --machine.device cpu")
            if device.index is None:
                device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            if device.index >= (count := torch.cuda.device_count()):
                raise UserError(f"machine.device {device}: this torch sees {count} GPUs, numbered from 0")
            torch.cuda.set_device(device)
        return device


@dataclass(kw_only=True)
class Engine:
    """A machine with every choice made; it is kept in the run folder so that a resumed run computes alike."""

    device: torch.device
    precision: str
    attention: str
    compile: bool
    threads: int
    sharding: Sharding = "none"
    recompute: bool = False

    @staticmethod
    def choose(
        machine: Machine,
        device: torch.device,
        task: nn.Module,
        sample: Callable[[], Batch],
        before: Mapping[str, Any] | None,
    ) -> "Engine":
        """Make the choices that are left to us; on CPUs by timing steps of the task on a few pictures.

        `before` holds the choices of an earlier part of the same run; settings that are given win over them.
        """
        keep_freed_memory()
        earlier: Mapping[str, Any] = before or {}
        has_bfloat16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
        precision = earlier.get("precision", "bfloat16" if has_bfloat16 else "float32")
        attention = earlier.get("attention", "fused")

        def decide() -> dict[str, Any]:
            engine = Engine(
                device=device,
                precision=precision if machine.precision == "auto" else machine.precision,
                attention=attention if machine.attention == "auto" else machine.attention,
                compile=device.type == "cuda" if machine.compile is None else machine.compile,
                threads=machine.threads or earlier.get("threads") or min(torch.get_num_threads(), cores()),
            )
            if device.type == "cpu" and not earlier:
                with untouched(task):
                    engine.time_choices(machine, task, sample)
            return engine.describe()

        choices = distributed.on_main(decide, device)  # every process computes alike
        choices |= {"sharding": resolve(machine.sharding), "recompute": machine.recompute}
        engine = Engine(device=device, **choices)
        if device.type == "cpu":
            torch.set_num_threads(engine.threads)
        return engine

    def time_choices(self, machine: Machine, task: nn.Module, sample: Callable[[], Batch]) -> None:
        """Try each open choice on the task itself and keep the fastest; takes a few seconds at most.

        Precision and attention go by the CPU time of this thread, since on busy cores seconds say who else was running;
        the number of threads goes by seconds, since there that is what matters.
        """
        precisions = ["float32", "bfloat16"] if machine.precision == "auto" else [machine.precision]
        attentions = ["fused", "plain"] if machine.attention == "auto" else [machine.attention]
        # Plain attention pays in bfloat16 alone on CPUs (see docs/performance.md), so float32 is timed once.
        pairs = [(p, a) for p in precisions for a in attentions if p == "bfloat16" or a == attentions[0]]
        thread_counts = [self.threads, 1] if machine.threads is None and self.threads > 1 else [self.threads]
        if len(pairs) == len(thread_counts) == 1:
            self.precision, self.attention = pairs[0]
            return
        batch, threads = sample(), self.threads

        def seconds(clock: Callable[[], float], pair: tuple[str, str], count: int) -> float:
            self.precision, self.attention = pair
            torch.set_num_threads(count)
            self.set_attention(task)
            return self.least_seconds(clock, task, batch)

        fastest = min(pairs, key=lambda pair: seconds(time.thread_time, pair, threads))
        self.threads = min(thread_counts, key=lambda count: seconds(time.perf_counter, fastest, count))
        self.precision, self.attention = fastest
        self.set_attention(task)

    def least_seconds(self, clock: Callable[[], float], task: nn.Module, batch: Batch) -> float:
        """The fastest of four steps on a batch; fewer where one takes seconds."""
        least = float("inf")
        for _ in range(4):
            start = clock()
            with self.autocast():
                loss = task(batch, 0.0).loss
            loss.backward()
            task.zero_grad(set_to_none=True)
            least = min(least, clock() - start)
            if least > 2.0:
                break
        return least

    def describe(self) -> dict[str, Any]:
        """The choices, as JSON."""
        return {k: v for k, v in asdict(self).items() if k != "device"}

    def set_attention(self, task: nn.Module) -> None:
        """Choose timm's attention path in every block."""
        for module in task.modules():
            if hasattr(module, "fused_attn"):
                setattr(module, "fused_attn", self.attention == "fused")  # noqa: B010  a flag that Module's types deny

    def wrap(self, task: nn.Module) -> nn.Module:
        """The task as the loop calls it: computing again, compiled, on the device, distributed; in this order."""
        self.set_attention(task)
        if self.recompute:
            recompute(task)
        if self.compile:
            self._compile(task)
        if self.sharding != "none":
            shard(task, self.sharding, self.precision, self.device)  # moves what it shares, block by block
            return task.to(self.device)
        task.to(self.device)
        if distributed.world() == 1:
            return task
        ids = [self.device.index] if self.device.type == "cuda" else None
        # Buffers, as moving averages, are moved alike by every process; torch is renaming the switch.
        names = inspect.signature(DistributedDataParallel.__init__).parameters
        switch: Any = {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}
        return DistributedDataParallel(task, device_ids=ids, **switch)

    def _compile(self, task: nn.Module) -> None:
        """Compile the task as one, or its blocks where something happens around them."""
        samplers = [module for module in task.modules() if isinstance(module, MaskSampler) and module.ramps]
        if samplers:
            raise UserError(
                f"the ratio of {type(samplers[0].masker).__name__} changes with training, so every step would have "
                "shapes of its own and compile anew: give --machine.compile False, or one ratio"
            )
        if self.recompute or self.sharding != "none":
            compile_blocks(task)
        else:
            task.compile()  # not dynamic=False: a masker that uses `progress` would recompile at each step

    def plain(self, task: nn.Module) -> Task:
        """The task itself, without what `wrap` put around it."""
        inner = task.module if isinstance(task, DistributedDataParallel) else task
        assert isinstance(inner, Task)
        return inner

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 for matrix products where chosen; weights stay in float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    @contextmanager
    def looking(self, task: nn.Module) -> Generator[None]:
        """Around `before_epoch`, in which a task may run outside of a step."""
        if self.sharding == "none":
            yield
            return
        with self.autocast():  # the weights of its blocks are in bfloat16
            yield
        cast(FSDPModule, task).reshard()  # no backward pass does it

    def sync(self, task: nn.Module, on: bool) -> AbstractContextManager[Any]:
        """Whether backward averages gradients over processes: only on the last micro batch of a step."""
        return task.no_sync() if isinstance(task, DistributedDataParallel) and not on else nullcontext()

    def step(self, task: nn.Module, batch: Batch, progress: float, last: bool, fraction: float) -> Step:
        """Forward and backward of one micro batch that weighs `share` of its step."""
        batch = replace(batch, progress=torch.full((), progress, device=self.device))
        with self.sync(task, on=last):
            with self.autocast():
                result = task(batch, progress)
            (result.loss * fraction).backward()
        return result


@contextmanager
def untouched(task: nn.Module) -> Generator[None]:
    """Steps that only try a task out leave no trace: buffers, as BatchNorm's running statistics, are put back."""
    before = {name: value.clone() for name, value in task.named_buffers()}
    try:
        yield
    finally:
        for name, value in task.named_buffers():
            value.copy_(before[name])


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of returning it: page faults are dear in every step on CPUs."""
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no separate mappings for large blocks
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD: keep up to 1 GiB at the top of the heap
    except (OSError, AttributeError):  # another C library: nothing to tune
        return
