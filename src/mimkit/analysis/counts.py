"""Counts: a recipe enters; what a step of it computes and keeps leaves, counted on tensors that have no memory.

The method is the real one, with its masks, views and losses; only numbers are missing, so that a ViT-H is counted in
seconds and in little memory.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from mimkit.core.batch import Batch
from mimkit.core.errors import UserError
from mimkit.guidance.sampler import MaskSampler
from mimkit.masks.masker import Signal
from mimkit.methods.base import Method
from mimkit.model.frozen import Frozen
from mimkit.train.cost import PROGRESS_POINTS, cached_fraction, compute_score_maps
from mimkit.train.machine import Engine
from mimkit.train.prepare import Prepared
from mimkit.train.sharding import blocks

_COUNTED = 8  # pictures of the counted step
_LATE = PROGRESS_POINTS[-1]  # when whatever a method begins later has begun


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a step takes. Bytes of activations are those of bfloat16 with fused attention, not compiled."""

    flops: float
    """Of a picture and step: matrix products and convolutions, forward and backward, the mean over training."""
    trained: int
    """Numbers in weights that are trained."""
    frozen: int
    """Numbers in weights and buffers that are not: slow copies, queues, positions."""
    teachers: int
    """Numbers in weights of teachers and tokenizers, of which each GPU holds all."""
    copies: int
    """Bytes that a step keeps however many pictures it has: weights in bfloat16."""
    kept: int
    """Bytes of a picture that are kept for the backward pass."""
    recomputed: int | None
    """The same where each block keeps only what enters it, with those of the largest block, which is computed again;
    None where a block has BatchNorm, which may not run twice."""
    largest_block: int
    """Numbers in the weights of the largest block."""


def count_step(prepared: Prepared) -> Counts:
    """Count a recipe on these pictures.

    Raises:
        UserError: what the recipe needs is not there, as a teacher; or its steps depend on the values of pictures.
    """
    batches = [prepared.sample(_COUNTED), prepared.sample(_COUNTED // 2)]  # before: fake tensors have no values
    task = _without_memory(prepared)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode:
            _empty(task)
            fakes = [_as_fake(batch, mode) for batch in batches]
            flops = _flops(prepared, task, fakes[0])
            larger, smaller = (_kept(task, fake) for fake in fakes)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
        raise UserError(
            f"a step of this recipe cannot be counted without its pictures ({reason}): leave --gpus away"
        ) from error
    more = _COUNTED - _COUNTED // 2
    trained = sum(weight.numel() for weight in task.parameters() if weight.requires_grad)
    frozen = {id(module.network): module.network for module in task.modules() if isinstance(module, Frozen)}
    everything = [*task.parameters(), *task.buffers()]
    return Counts(
        flops=flops,
        trained=trained,
        frozen=sum(weight.numel() for weight in everything) - trained,
        teachers=sum(weight.numel() for network in frozen.values() for weight in network.parameters()),
        copies=max(0, larger.total - _COUNTED * (larger.total - smaller.total) // more),
        kept=(larger.total - smaller.total) // more,
        recomputed=None if _has_batch_norm(task) else (larger.recomputed - smaller.recomputed) // more,
        largest_block=max((sum(w.numel() for w in block.parameters()) for block in blocks(task)), default=trained),
    )


def _has_batch_norm(task: Method) -> bool:
    return any(isinstance(module, _BatchNorm) for block in blocks(task) for module in block.modules())


def _without_memory(prepared: Prepared) -> Method:
    """The method with its encoder, as `Prepared.task`, with shapes alone; what loads weights is built with them."""
    statistics = prepared.statistics
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")
            encoder: Any = prepared.config.encoder.build(prepared.size, prepared.channels)
            encoder.mean, encoder.std = statistics
            return prepared.config.method.build(encoder)
    except RuntimeError:  # weights of a teacher are looked at
        return prepared.task


def _empty(task: Method) -> None:
    """Put tensors of the CPU that hold nothing in the place of all others: `meta` itself has no autocast."""
    fakes: dict[
        int, tuple[Tensor, Tensor]
    ] = {}  # by what they stand for, which weights that are shared stand for twice

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in fakes:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            weight = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
            fakes[id(tensor)] = tensor, weight
            fakes[id(weight)] = weight, weight
        return fakes[id(tensor)][1]

    roots = [task, *(module.network for module in task.modules() if isinstance(module, Frozen))]
    for module in (module for root in roots for module in root.modules()):
        for tensors in cast(tuple[dict[str, Any], ...], (module._parameters, module._buffers)):
            tensors.update({name: fake(tensor) for name, tensor in tensors.items() if tensor is not None})


def _as_fake(batch: Batch, mode: FakeTensorMode) -> Batch:
    fake: Callable[[Tensor], Tensor] = mode.from_tensor
    views = tuple(fake(view) for view in batch.other_views)
    return replace(batch, images=fake(batch.images), rng_keys=fake(batch.rng_keys), other_views=views)


def _flops(prepared: Prepared, task: Method, batch: Batch) -> float:
    """As `train.cost.count_flops`; moments of training at which maskers look at the same are counted once."""
    engine = Engine(device=torch.device("cpu"), precision="float32", attention="plain", compile=False, threads=1)
    engine.set_attention(task)  # of fused attention the counter adds what it computes again in the backward pass
    maskers = [module.masker for module in task.modules() if isinstance(module, MaskSampler)]
    saved, counts = cached_fraction(prepared.config), dict[tuple[Signal, ...], float]()
    total = 0.0
    for progress in PROGRESS_POINTS:
        signals = tuple(masker.reads(progress) for masker in maskers)
        if signals not in counts:
            counts[signals] = _counted(engine.step, task, batch, progress, True, 1.0)
            if any(signal != Signal.NONE for signal in signals):
                counts[signals] -= saved * _counted(compute_score_maps, task, batch, progress)
        total += counts[signals]
    return total / len(PROGRESS_POINTS)


def _counted(work: Callable[..., Any], *arguments: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        work(*arguments)
    return counter.get_total_flops() / _COUNTED


@dataclass(frozen=True)
class _Kept:
    total: int
    recomputed: int


def _kept(task: Method, batch: Batch) -> _Kept:
    """Bytes that a forward pass keeps for the backward pass, in all and where blocks are computed again."""
    holders: list[nn.Module | None] = [None]  # the block that computes now is the last one
    storages: dict[int, tuple[Tensor, nn.Module | None]] = {}  # tensors stay alive, so that no address is used twice
    entering: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storages.setdefault(tensor.untyped_storage()._cdata, (tensor, holders[-1]))
        return tensor

    def enter(block: nn.Module, inputs: tuple[Any, ...]) -> None:
        holders.append(block)
        if torch.is_grad_enabled():
            entering.update({x.untyped_storage()._cdata: x for x in inputs if isinstance(x, Tensor)})

    handles = [block.register_forward_pre_hook(enter) for block in blocks(task)]
    handles += [block.register_forward_hook(lambda *_: holders.pop() and None) for block in blocks(task)]
    Engine(device=torch.device("cpu"), precision="bfloat16", attention="fused", compile=False, threads=1).set_attention(
        task
    )
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        loss = task(batch, _LATE).loss
    for handle in handles:
        handle.remove()
    del loss
    sizes: dict[nn.Module | None, int] = {}
    for tensor, holder in storages.values():
        sizes[holder] = sizes.get(holder, 0) + tensor.untyped_storage().nbytes()
    outside = sizes.pop(None, 0)
    inputs = sum(
        x.untyped_storage().nbytes() for address, x in entering.items() if storages.get(address, (x, x))[1] is not None
    )
    return _Kept(outside + sum(sizes.values()), outside + inputs + max(sizes.values(), default=0))
