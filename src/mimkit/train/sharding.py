"""Sharding: a task enters; the same task, of whose weights each process holds a share, leaves, and a whole copy."""

import copy
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models import ResNet
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import register_dataclass
from torch.utils.checkpoint import checkpoint

from mimkit.core import distributed
from mimkit.core.batch import Step
from mimkit.core.errors import UserError
from mimkit.methods.base import Method

Sharding = Literal["none", "full", "hybrid"]

# FSDP prepares the backward pass of the tensors that a task returns, and before pytorch#174692 found those alone that
# pytrees know: weights of a head over a frozen encoder would have stayed as they are, silently.
register_dataclass(Step)


def resolve(sharding: Sharding) -> Sharding:
    """What a setting comes to with the processes at hand: one alone holds everything, on one machine hybrid is full.

    Raises:
        UserError: hybrid, and the processes of this machine are not known, or one.
    """
    world = distributed.world()
    if sharding != "hybrid" or world == 1:
        return sharding if world > 1 else "none"
    local = local_world()
    if local == 1 or world % local:
        raise UserError(
            f"machine.sharding hybrid shares a model among the processes of a machine: LOCAL_WORLD_SIZE is {local} "
            f"and there are {world} in all; start equally many on each machine, two or more, or use full"
        )
    return "full" if local == world else "hybrid"


def local_world() -> int:
    """Processes on this machine, as the launcher says; 1 where it says nothing."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def mesh_of(sharding: Sharding, device: torch.device) -> DeviceMesh:
    """The processes in one row, or a row for each machine."""
    world, local = distributed.world(), local_world()
    if sharding == "hybrid":
        return init_device_mesh(device.type, (world // local, local), mesh_dim_names=("replicate", "shard"))
    return init_device_mesh(device.type, (world,), mesh_dim_names=("shard",))


def blocks(task: nn.Module) -> Iterator[nn.Module]:
    """What is gathered, computed again or compiled at once: blocks of ViTs, Swins and ResNets, and of slow copies."""
    for module in task.modules():
        for name, child in module.named_children():
            stage = isinstance(module, ResNet) and name.startswith("layer")
            if (name == "blocks" or stage) and isinstance(child, nn.Sequential | nn.ModuleList):
                yield from child.children()


def recompute(task: nn.Module) -> None:
    """Keep what enters each block alone, and compute the rest of it again in the backward pass.

    Raises:
        UserError: a block has BatchNorm, whose running statistics would move twice.
    """
    for block in blocks(task):
        if has_batch_norm(block):
            raise UserError(
                "machine.recompute runs blocks twice, and BatchNorm would count its pictures twice: leave it away "
                "under a ResNet, lower --machine.micro-batch instead"
            )
        if any(parameter.requires_grad for parameter in block.parameters()):
            # Its forward alone: hooks, as those that gather weights, stay around it, and its names are the same.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compile_blocks(task: nn.Module) -> None:
    """Compile what is inside of each block, around which hooks may gather weights."""
    for block in blocks(task):
        block.forward = torch.compile(block.forward)


def shard(task: nn.Module, sharding: Sharding, precision: str, device: torch.device) -> None:
    """Leave each process its share of every weight, in place; they are gathered block by block when they are used.

    In bfloat16 the weights of blocks travel and multiply in it, and gradients are summed in float32. Autocast stays on,
    so that sums of blocks, norms and losses are in float32 as without sharding; and so are weights outside of blocks.

    Raises:
        UserError: a parameter is a single number, which has no axis to cut.
    """
    if scalars := [name for name, parameter in task.named_parameters() if not parameter.ndim]:
        raise UserError(
            f"machine.sharding {sharding} cannot cut the single number {scalars[0]}: give it one axis, or leave "
            "--machine.sharding away"
        )
    mesh = mesh_of(sharding, device)
    exact = MixedPrecisionPolicy(cast_forward_inputs=False)
    half = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in [*blocks(task)]:
        halved = precision == "bfloat16" and not has_batch_norm(block)  # which takes float32 alone
        for module in block.modules():
            if halved and isinstance(module, nn.LayerNorm):
                module.forward = partial(layer_norm, module)
        fully_shard(block, mesh=mesh, mp_policy=half if halved else exact)
    fully_shard(task, mesh=mesh, mp_policy=exact)
    register_fsdp_forward_method(task, "before_epoch")  # it runs the encoder too


def layer_norm(norm: nn.LayerNorm, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """A LayerNorm whose weights were gathered in bfloat16, of a sequence in float32: CPUs do not mix the two."""
    weight, bias = (None if value is None else value.float() for value in (norm.weight, norm.bias))
    return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


def has_batch_norm(block: nn.Module) -> bool:
    """Whether a block has running statistics."""
    return any(isinstance(module, _BatchNorm) for module in block.modules())


class Whole:
    """A task in training with whole weights, for what one process does alone: evaluations, pictures, exports.

    Args:
        task: before it is sharded.
        sharding: none: the task itself is whole, everywhere.
        device: where it is used.
    """

    def __init__(self, task: Method, sharding: Sharding, device: torch.device) -> None:
        self.task, self.sharding, self.device = task, sharding, device
        self.copy: Method | None = None
        if sharding != "none" and distributed.is_main():
            self.copy = copy.deepcopy(task)  # frozen networks too: they go with it to the device and back

    @contextmanager
    def gathered(self) -> Generator[Method]:
        """The task as it stands now; only the main process may run it. Every process calls this together."""
        if self.sharding == "none":
            yield self.task
            return
        state = get_model_state_dict(self.task, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if self.copy is None:
            yield self.task
            return
        self.copy.load_state_dict(state)
        try:
            yield self.copy.to(self.device)
        finally:
            self.copy.to("cpu")


def load_whole(
    task: nn.Module, optimizer: torch.optim.Optimizer, weights: dict[str, Tensor], state: dict[str, Any]
) -> None:
    """Load state dicts with whole tensors, or shares, into a task and its optimizer, of which it may hold a share."""
    like = task.state_dict()
    task.load_state_dict({name: share(value, like[name]) if name in like else value for name, value in weights.items()})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shares = {
        number: {
            key: share(value, parameters[number]) if isinstance(value, Tensor) else value for key, value in of.items()
        }
        for number, of in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": shares})


def shared_tensors(task: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, DTensor]:
    """What is shared among processes: tensors by `model.NAME`, and parameters by `optimizer.NUMBER` as well."""
    tensors = {f"model.{name}": value for name, value in task.state_dict().items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    tensors |= {f"optimizer.{number}": parameter for number, parameter in enumerate(parameters)}
    return {name: value for name, value in tensors.items() if isinstance(value, DTensor)}


def share(whole: Tensor, like: Tensor) -> Tensor:
    """The share of a whole tensor that `like` is of another: each process takes it from its own."""
    if not isinstance(like, DTensor) or isinstance(whole, DTensor):
        return whole
    if whole.shape != like.shape:
        return whole.clone()  # it would hold the file from which it is mapped
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def total_of(norm: Tensor) -> Tensor:
    """A norm as a plain number on the device; every process calls this together."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
