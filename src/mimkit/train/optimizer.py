"""Optimisers: a task and the global batch size enter, an optimiser with its peak learning rates leaves."""

import math
from dataclasses import dataclass

import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from mimkit.errors import UserError, at_least


@dataclass(kw_only=True, slots=True)
class AdamWConfig:
    """AdamW with MAE's settings and its learning-rate rule, rate = base_rate * batch_size / 256, or / 512 as SimMIM's.

    Tensors with one axis, biases and what a task calls `undecayed` are not decayed; class and mask tokens (three axes)
    are, as in the released code (facebookresearch/mae:main_pretrain.py).
    """

    base_rate: float = 1.5e-4
    """Learning rate for `per` pictures a step; scales linearly with the global batch."""
    per: int = 256
    """Pictures a step for which `base_rate` is meant; SimMIM's 512."""
    betas: tuple[float, float] = (0.9, 0.95)
    """How slowly the means of the gradient and of its square move."""
    weight_decay: float = 0.05
    """Share of a weight, times the learning rate, that each step takes off."""
    clip: float | None = None
    """Largest gradient norm; MAE does not clip."""

    def check(self) -> None:
        """Refuse numbers that cannot be meant, before anything takes long."""
        at_least(0, **{"optimizer.weight_decay": self.weight_decay})
        at_least(1, **{"optimizer.per": self.per})
        for name, value in (("base_rate", self.base_rate), ("clip", self.clip)):
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"optimizer.{name} must be above 0, got {value}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas must lie between 0 and 1 (excluded), got {self.betas}; MAE uses 0.9 0.95")

    def rate(self, batch_size: int) -> float:
        """Peak learning rate for this global batch size."""
        return self.base_rate * batch_size / self.per

    def build(self, task: nn.Module, batch_size: int) -> torch.optim.Optimizer:
        """The optimiser; every group keeps its peak rate as `peak`."""
        groups = param_groups_weight_decay(task, self.weight_decay, no_weight_decay_list=getattr(task, "undecayed", ()))
        optimizer = torch.optim.AdamW(groups, lr=self.rate(batch_size), betas=self.betas, fused=True)
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
        return optimizer


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of each group to its peak times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
