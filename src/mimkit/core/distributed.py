"""Processes: torchrun's environment enters; rank, world and a few collectives leave. No-ops in one process."""

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from mimkit.core.errors import UserError

T = TypeVar("T")
_alone = False  # inside `on_main`, where the other processes wait and take part in nothing


def rank() -> int:
    """This process among all, from 0; torchrun's word counts before the processes have met and after."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))


def world() -> int:
    """Number of processes that compute together: 1 within `on_main`."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


@contextmanager
def processes(device: torch.device) -> Generator[None]:
    """Join the process group that torchrun announces (NCCL on CUDA, gloo elsewhere) and leave it at the end."""
    # Without torchrun there is one process; inside another's group, that one is used and left alone.
    if "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def gather(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "world *shape"]:
    """What every process has, of equal shapes; without gradient."""
    if world() == 1:
        return x.detach().unsqueeze(0)
    # Collectives want contiguous memory: of a transposed tensor they would send rows in the order of storage.
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.stack(parts)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[bad-override]
        return gather(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[bad-override]
        return total(gradient.clone(memory_format=torch.contiguous_format))[rank()]


def gather_with_gradient(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "world *shape"]:
    """What every process has, of equal shapes; each gets back the gradient that all losses together have there.

    With gradients averaged over processes, as DDP does, means of each process's own part then train as one process
    trains on the joined batch.
    """
    return x.unsqueeze(0) if world() == 1 else _Gather.apply(x)


def gather_objects(x: T) -> list[T]:
    """What every process has, of anything that pickles."""
    if world() == 1:
        return [x]
    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, x)
    return parts


def on_main(work: Callable[[], T], device: torch.device) -> T:
    """Done by the main process alone; every process gets its result, or its UserError.

    Collectives in `work` are no-ops as in one process, so a task may be tried out there.
    """
    global _alone
    if world() == 1:
        return work()
    shared: list[Any] = [None, None]
    if is_main():
        _alone = True
        try:
            shared[0] = work()
        except UserError as error:
            shared[1] = error
        finally:
            _alone = False
    # Errors travel as results do: a process that only waited would wait for ever.
    dist.broadcast_object_list(shared, src=0, device=device)
    if shared[1] is not None:
        raise shared[1]
    return shared[0]


def largest(number: int, device: torch.device) -> int:
    """The largest of every process's numbers; reads the device."""
    if world() == 1:
        return number
    x = torch.tensor(number, device=device)
    dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return int(x.item())


def total(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """The sum of what every process has, in place; without gradient."""
    if world() > 1:
        dist.all_reduce(x)
    return x
