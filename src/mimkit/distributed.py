"""Processes: torchrun's environment enters; rank, world and three collectives leave. No-ops in one process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """This process among all, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


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


def mean(x: Tensor) -> Tensor:
    """Mean over all processes; without gradient."""
    if world() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / world()


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is up in any process; reads the device."""
    if world() == 1:
        return flag
    x = torch.tensor(float(flag), device=device)
    dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return bool(x.item())


def wait() -> None:
    """Wait until every process is here."""
    if world() > 1:
        dist.barrier()
