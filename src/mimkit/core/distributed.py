"""Processes: torchrun's environment enters; rank, world and a few collectives leave. No-ops in one process."""

import os
import socket
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor, nn

from mimkit.core import board
from mimkit.core.announced import announced
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
    place = None if dist.is_initialized() else announced()
    if place is None:
        yield
        return
    store = board.arrive(place)
    # Words and numbers of the host travel over gloo in any case: no GPU waits for them.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world)
    try:
        yield
    except BaseException:
        board.ask_to_speak(place)  # before the others see that this one is gone, and say that alone
        raise
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


def gather_objects(x: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """What every process has, of anything that pickles. Another thread than the training's needs a group of its own."""
    if group is None and world() == 1:
        return [x]
    parts: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(parts, x, group)
    return parts


def together(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> list[T]:
    """Done by every process; all get the results of all, or the same UserError where some of them failed.

    A process that failed alone would leave the others waiting. What is no UserError is raised where it happened.
    For `group` see `gather_objects`.
    """
    if group is None and world() == 1:
        return [work()]
    result, failure = None, None
    try:
        result = work()
    except Exception as error:
        failure = error
    text = None if failure is None else str(failure) if isinstance(failure, UserError) else repr(failure)
    texts, hosts, results = zip(*gather_objects((text, socket.gethostname(), result), group), strict=True)
    if failure is not None and not isinstance(failure, UserError):
        raise failure
    failed = [number for number, line in enumerate(texts) if line is not None]
    if failed:
        where = "" if len(failed) == len(texts) else f"{processes_at(failed, hosts)}: "
        raise UserError(f"{where}{texts[failed[0]]}") from failure
    return list(results)


def processes_at(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """Some processes as one names them: `rank 1 (host b)`; `hosts` are those of all."""
    names = list(dict.fromkeys(hosts[number] for number in ranks))
    few, more = ", ".join(map(str, ranks[:8])), f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    places = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return f"rank{'s' * (len(ranks) > 1)} {few}{more} (host{'s' * (len(names) > 1)} {places})"


def refuse_differences(work: Callable[[], Mapping[str, Mapping[str, Any]]]) -> None:
    """Compare what every process finds; raises the same UserError in all where one of them differs from the first.

    Args:
        work: finds what has to be equal, by name, below the words that say how to mend it.
    """
    if world() == 1:
        return
    hosts, facts = zip(*together(lambda: (socket.gethostname(), work())), strict=True)
    for remedy in facts[0]:
        for name in dict.fromkeys(name for entry in facts for name in entry[remedy]):
            values = [entry[remedy].get(name) for entry in facts]
            different = [number for number, value in enumerate(values) if value != values[0]]
            if different:
                raise UserError(
                    f"the processes differ: {name} is {values[0]} in {processes_at([0], hosts)} and "
                    f"{values[different[0]]} in {processes_at(different, hosts)}: {remedy}"
                )


def peer_lost(error: BaseException) -> bool:
    """Whether a collective failed since another process is gone or cannot be reached."""
    by_gloo = isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "NCCL", "peer"))
    return world() > 1 and (by_gloo or isinstance(error, dist.DistError))


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
    dist.broadcast_object_list(shared, src=0)
    if shared[1] is not None:
        raise shared[1]
    return shared[0]


def is_sharded(module: nn.Module) -> bool:
    """Whether each process holds a share of the module's weights (FSDP2), which are gathered in its forward alone."""
    if not dist.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule  # a second to import, which one process need not pay

    return isinstance(module, FSDPModule)


def plain_type(module: nn.Module) -> type[nn.Module]:
    """The class of a module before it was sharded, which gives it one of its own."""
    return type(module).__bases__[-1] if is_sharded(module) else type(module)


@contextmanager
def whole(module: Any) -> Generator[None]:
    """Gather the weights of a block that may be sharded, to read them outside its forward; not those of its children.

    Every process calls this together.
    """
    if not is_sharded(module):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


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


def maximum(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """The largest of what every process has, element by element, in place; without gradient."""
    if world() > 1:
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x
