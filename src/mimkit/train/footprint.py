"""Footprint: a task and a batch enter; the bytes that a step keeps for its backward pass leave."""

from collections.abc import Set
from typing import Any

import torch
from torch import Tensor, nn

from mimkit.core.batch import Batch
from mimkit.methods.base import Task
from mimkit.train.sharding import blocks


def kept_bytes(task: Task, batch: Batch, recompute: bool = False) -> int:
    """What autograd keeps of a step, weights aside.

    Args:
        recompute: of each block what enters it alone, and of one at a time all that is computed again.
    """
    footprint = Footprint({weight.untyped_storage().data_ptr() for weight in task.parameters()})
    handles = [handle for block in blocks(task) for handle in footprint.watch(block)] if recompute else []
    try:
        with torch.autograd.graph.saved_tensors_hooks(footprint.note, lambda tensor: tensor):
            task(batch, 0.0).loss.detach()
    finally:
        for handle in handles:
            handle.remove()
    return footprint.total()


class Footprint:
    """Bytes by the block in which they are kept; a block counts for what enters it, and the largest one whole."""

    def __init__(self, weights: Set[int]) -> None:
        self.weights = weights  # their addresses: layers keep them turned, in tensors that are no parameters
        self.outside: dict[int, int] = {}  # by address, since several nodes may keep the same memory
        self.blocks: list[dict[int, int]] = []
        self.entering = 0
        self.current = self.outside

    def note(self, tensor: Tensor) -> Tensor:
        """A tensor that autograd keeps."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.current[storage.data_ptr()] = storage.nbytes()
        return tensor

    def watch(self, block: nn.Module) -> tuple[Any, Any]:
        """Hooks that say when a step is inside of a block."""
        return block.register_forward_pre_hook(self._enter), block.register_forward_hook(self._leave)

    def _enter(self, block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.current = {}
        self.blocks.append(self.current)
        self.entering += inputs[0].nbytes * torch.is_grad_enabled()

    def _leave(self, block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.current = self.outside

    def total(self) -> int:
        """All of it, with one block computed again."""
        largest = max((sum(kept.values()) for kept in self.blocks), default=0)
        return sum(self.outside.values()) + self.entering + largest
