"""Optimizers: a task and the global batch size enter, an optimizer with its peak learning rates leaves."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import timm.optim
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn

from mimkit.core.errors import UserError, at_least
from mimkit.methods.base import Task


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """Base of all optimizers: the learning rate grows with the batch, rate = base_lr * batch_size / per."""

    base_lr: float = 0.1
    """Learning rate for `per` pictures a step; scales linearly with the global batch."""
    per: int = 256
    """Pictures a step for which `base_lr` is meant; SimMIM's 512."""
    weight_decay: float = 0.0
    """Share of a weight, times the learning rate, that each step takes off."""
    weight_decay_end: float | None = None
    """What the weight decay becomes, in half a cosine, where there is any; DINO's goes from 0.04 to 0.4."""
    clip: float | None = None
    """Largest gradient norm; MAE does not clip."""
    clip_each: float | None = None
    """Largest norm of the gradient of each tensor by itself, instead of that of all; DINO's 3.0."""

    def check(self) -> None:
        """Refuse numbers that cannot be meant, before anything takes long."""
        decays = {"weight_decay": self.weight_decay, "weight_decay_end": self.weight_decay_end}
        at_least(0, **{f"optimizer.{name}": value for name, value in decays.items()})
        at_least(1, **{"optimizer.per": self.per})
        for name in ("base_lr", "clip", "clip_each"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"optimizer.{name} must be above 0, got {value}")
        if self.clip is not None and self.clip_each is not None:
            raise UserError("optimizer.clip shortens all gradients together, optimizer.clip_each each: give one")
        if self.weight_decay_end is not None and self.weight_decay == 0:
            raise UserError("optimizer.weight_decay_end has no decay to start from: give --optimizer.weight-decay")

    def peak_lr(self, batch_size: int) -> float:
        """Peak learning rate for this global batch size."""
        return self.base_lr * batch_size / self.per

    def make(self, task: nn.Module, rate: float) -> torch.optim.Optimizer:
        """The optimizer of all that `task` trains; a group may have an `lr_scale`, which `build` applies."""
        raise NotImplementedError(f"{type(self).__name__} is no optimizer until it defines make")

    def build(self, task: nn.Module, batch_size: int) -> torch.optim.Optimizer:
        """The optimizer; every group keeps its peak rate as `peak`, and if its decay moves both ends as `decays`."""
        optimizer = self.make(task, self.peak_lr(batch_size))
        if isinstance(task, Task) and task.rates:
            divide_groups(optimizer, task)
        for group in optimizer.param_groups:
            group["peak"] = group["lr"] = group["lr"] * group.get("lr_scale", 1.0)
            if self.weight_decay_end is not None and group[_decay(group)] > 0:
                group["decays"] = (group[_decay(group)], self.weight_decay_end)
        return optimizer

    def clip_gradients(self, parameters: Sequence[Tensor]) -> Tensor | None:
        """Clip the gradients as asked; returns the norm of all before, or None where nothing is asked."""
        if self.clip is not None:
            return torch.nn.utils.clip_grad_norm_(parameters, self.clip)
        if self.clip_each is None:
            return None
        gradients = [p.grad for p in parameters if p.grad is not None]
        norms = torch._foreach_norm(gradients)
        torch._foreach_mul_(gradients, [(self.clip_each / (norm + 1e-6)).clamp(max=1) for norm in norms])
        return torch.linalg.vector_norm(torch.stack(norms))


@dataclass(kw_only=True, slots=True)
class AdamWConfig(OptimizerConfig):
    """AdamW with MAE's settings; SimMIM's rate is for 512 pictures a step.

    Tensors with one axis, biases and what a task calls `no_weight_decay` are not decayed; class and mask tokens
    (three axes) are, as in the released code (facebookresearch/mae:main_pretrain.py).
    """

    base_lr: float = 1.5e-4
    """Learning rate for `per` pictures a step; scales linearly with the global batch."""
    weight_decay: float = 0.05
    """Share of a weight, times the learning rate, that each step takes off."""
    betas: tuple[float, float] = (0.9, 0.95)
    """How slowly the means of the gradient and of its square move."""
    decay_all: bool = False
    """Decay every tensor, as MoCo v3 does."""
    layer_decay: float | None = None
    """What each layer's rate is of the rate of the layer above it: fine-tuning's 0.65 to 0.9."""

    def check(self) -> None:
        OptimizerConfig.check(self)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas must lie between 0 and 1 (excluded), got {self.betas}; MAE uses 0.9 0.95")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise UserError(f"optimizer.layer_decay lies above 0 and up to 1, got {self.layer_decay}")

    def make(self, task: nn.Module, rate: float) -> torch.optim.Optimizer:
        no_weight_decay: Any = () if self.decay_all or not isinstance(task, Task) else task.no_weight_decay
        settings: Any = dict(weight_decay=self.weight_decay, weight_decay_exclude_1d=not self.decay_all)
        if self.layer_decay is None:
            groups = param_groups_weight_decay(task, no_weight_decay_list=no_weight_decay, **settings)
        else:
            groups = layer_groups(task, self.layer_decay, no_weight_decay, **settings)
        return torch.optim.AdamW(groups, lr=rate, betas=self.betas, fused=True)


@dataclass(kw_only=True, slots=True)
class SGDConfig(OptimizerConfig):
    """Stochastic gradient descent with momentum; every tensor is decayed, as in MoCo (facebookresearch/moco)."""

    base_lr: float = 0.03
    """Learning rate for `per` pictures a step; scales linearly with the global batch."""
    weight_decay: float = 1e-4
    """Decay of weights, added to their gradient."""
    momentum: float = 0.9
    """Share of the last step's direction that is kept."""
    nesterov: bool = False
    """Look one step ahead along the momentum."""

    def check(self) -> None:
        OptimizerConfig.check(self)
        _check_momentum(self.momentum)
        if self.nesterov and self.momentum == 0:
            raise UserError("optimizer.nesterov needs a momentum above 0: give --optimizer.momentum 0.9")

    def make(self, task: nn.Module, rate: float) -> torch.optim.Optimizer:
        trained = [p for p in task.parameters() if p.requires_grad]
        settings: Any = dict(momentum=self.momentum, nesterov=self.nesterov, weight_decay=self.weight_decay)
        return torch.optim.SGD(trained, lr=rate, **settings)


@dataclass(kw_only=True, slots=True)
class LarsConfig(OptimizerConfig):
    """LARS for large batches: a tensor's step is in proportion to its norm (facebookresearch/mae:util/lars.py).

    Tensors with one axis (biases, norms) are neither decayed nor adapted.
    """

    base_lr: float = 0.3
    """Learning rate for `per` pictures a step; scales linearly with the global batch."""
    weight_decay: float = 1e-6
    """Decay of weights, added to their gradient before it is scaled."""
    momentum: float = 0.9
    """Share of the last step's direction that is kept."""
    trust: float = 0.001
    """A weight's gradient is scaled to this share of the weight's norm."""

    def check(self) -> None:
        OptimizerConfig.check(self)
        _check_momentum(self.momentum)
        if not 0 < self.trust < math.inf:
            raise UserError(f"optimizer.trust must be above 0, got {self.trust}; it is 0.001 as a rule")

    def make(self, task: nn.Module, rate: float) -> torch.optim.Optimizer:
        trained = [p for p in task.parameters() if p.requires_grad]
        weights = [p for p in trained if p.ndim > 1]
        vectors = [p for p in trained if p.ndim <= 1]
        groups = [
            {"params": weights, "decay": self.weight_decay, "always_adapt": True},
            {"params": vectors, "decay": 0.0, "always_adapt": False},
        ]
        return Lars([g for g in groups if g["params"]], lr=rate, momentum=self.momentum, trust_coeff=self.trust, eps=0)


class Lars(timm.optim.Lars):
    """timm's LARS, with the decay (a group's `decay`) in the gradient before its norm is taken, as MAE and MoCo v3.

    timm divides by |g| + decay |w| instead of |g + decay w|.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; gradients hold the decay afterwards."""
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            if group["decay"] and trained:
                torch._foreach_add_([p.grad for p in trained], trained, alpha=group["decay"])
        return super().step(closure)


def layer_groups(task: nn.Module, decay: float, no_weight_decay: tuple[str, ...] = (), **settings: Any) -> list[Any]:
    """timm's groups for layer-wise learning rates of a method: its encoder's layers, and all else above the last one.

    A group's `lr_scale` is decay^(distance from the top): patch embedding, class token and positions lie at the
    bottom, then one block after the other, and the head on top (Bao et al. 2021, BEiT; facebookresearch/mae:
    util/lr_decay.py). timm puts a final norm before the pooling with the last block.
    """
    encoder: Any = task.encoder
    inside = "encoder.timm."  # timm finds layers by the names they have in its own model
    model: Any = SimpleNamespace(
        named_parameters=lambda: [(name.removeprefix(inside), p) for name, p in task.named_parameters()],
        group_matcher=encoder.timm.group_matcher,
    )
    names = [name.removeprefix(inside) for name in no_weight_decay]
    return param_groups_layer_decay(model, layer_decay=decay, no_weight_decay_list=names, **settings)


def divide_groups(optimizer: torch.optim.Optimizer, task: Task) -> None:
    """Give the parameters that `task.rates` names groups of their own, with their share of the rate as `lr_scale`."""
    share = {
        parameter: rate
        for name, parameter in task.named_parameters()
        for start, rate in task.rates.items()
        if name.startswith(start)
    }
    groups = []
    for group in optimizer.param_groups:
        rates = [share.get(parameter, 1.0) for parameter in group["params"]]
        for rate in dict.fromkeys(rates):
            parameters = [p for p, own in zip(group["params"], rates, strict=True) if own == rate]
            groups.append({**group, "params": parameters, "lr_scale": group.get("lr_scale", 1.0) * rate})
    optimizer.param_groups[:] = groups


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of each group to its peak times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def set_decay(optimizer: torch.optim.Optimizer, progress: float) -> None:
    """Move the weight decay of each group that has `decays` from the first to the last, in half a cosine."""
    for group in optimizer.param_groups:
        if "decays" in group:
            first, last = group["decays"]
            group[_decay(group)] = last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


def _decay(group: dict[str, Any]) -> str:
    """Where a group keeps its weight decay: `Lars` has a name of its own for it."""
    return "decay" if "decay" in group else "weight_decay"


def _check_momentum(momentum: float) -> None:
    if not 0 <= momentum < 1:
        raise UserError(f"optimizer.momentum lies between 0 and 1 (excluded), got {momentum}")
