"""Processes: torchrun's environment enters; rank, world and a few collectives leave. No-ops in one process."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from mimkit.errors import UserError

T = TypeVar("T")


def rank() -> int:
    """This process among all, from 0; torchrun's word counts before the processes have met and after."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


@contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """Join the process group that torchrun announces (NCCL on CUDA, gloo elsewhere) and leave it at the end."""
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
    parts = [torch.empty_like(x) for _ in range(world())]
    dist.all_gather(parts, x.detach())
    return torch.stack(parts)


def gather_objects(x: T) -> list[T]:
    """What every process has, of anything that pickles."""
    if world() == 1:
        return [x]
    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, x)
    return parts


def on_main(work: Callable[[], T], device: torch.device) -> T:
    """Done by the main process alone; every process gets its result, or its UserError."""
    if world() == 1:
        return work()
    shared: list[Any] = [None, None]
    if is_main():
        try:
            shared[0] = work()
        except UserError as error:
            shared[1] = error
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
