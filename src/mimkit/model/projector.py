"""Projector: images enter, points that are compared leave; slow copies and a BatchNorm over all processes too."""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mimkit.core.distributed import gather_with_gradient, world
from mimkit.core.errors import UserError
from mimkit.model.backbone import Backbone, Tokens

Pool = Literal["class", "mean"]
Last = Literal["none", "plain", "scale"]


class GlobalBatchNorm(_BatchNorm):
    """BatchNorm over the batch of all processes, with gradient, on any device; in one process plain BatchNorm.

    Takes (B, C) and (B, C, ...), as many pictures in each process; statistics are computed in float32.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.ndim >= 2

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world() == 1:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            x = input.float()
            # Two numbers a channel travel, not the batch. The variance of all is the mean of the processes' variances
            # plus the variance of their means, as each has equally many pictures.
            parts = torch.stack(torch.var_mean(x, dim=(0, *range(2, x.ndim)), correction=0))
            variances, means = gather_with_gradient(parts).unbind(1)
            mean = means.mean(dim=0)
            variance = variances.mean(dim=0) + means.var(dim=0, correction=0)
            if self.running_mean is not None and self.running_var is not None:
                count, fraction = world() * x.numel() // x.shape[1], self.momentum or 0.0
                self.running_mean.lerp_(mean.detach(), fraction)
                self.running_var.lerp_(variance.detach() * (count / (count - 1)), fraction)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
            # Folded into one product and one sum a value, which autograd then keeps less for.
            scale = (variance + self.eps).rsqrt() * (1 if self.weight is None else self.weight)
            shift = (0 if self.bias is None else self.bias) - mean * scale
            shape = (1, -1, *[1] * (x.ndim - 2))
            return (x * scale.view(shape) + shift.view(shape)).to(input.dtype)


def synchronized(module: nn.Module) -> nn.Module:
    """The module with every BatchNorm in it replaced by a `GlobalBatchNorm` of the same tensors."""
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        # The very tensors, not copies: an optimizer or a slow copy that holds them already stays right.
        new = GlobalBatchNorm(module.num_features, module.eps, module.momentum, device="meta")
        new._parameters, new._buffers = module._parameters, module._buffers
        return new
    for name, child in module.named_children():
        setattr(module, name, synchronized(child))
    return module


def mlp(
    widths: Sequence[int], *, norm: bool = True, last: Last = "none", between: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Linear layers from `widths[0]` over the hidden widths to `widths[-1]`, with ReLU, or GELU, `between` them.

    Args:
        norm: BatchNorm before what is between, and layers without bias; else layers with bias.
        last: what follows the last layer: nothing, BatchNorm without parameters (`plain`, MoCo v3) or with a learned
            scale but no shift (`scale`, SimCLR).
    """
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        layers += [between()] if i else []
        layers.append(nn.Linear(inputs, outputs, bias=not norm))
        if norm and i < len(widths) - 2:
            layers.append(GlobalBatchNorm(outputs))
    if last != "none":
        layers.append(GlobalBatchNorm(widths[-1], affine=last == "scale"))
        # A learned scale without a shift: BatchNorm has only both or none, so the shift is taken away.
        layers[-1].register_parameter("bias", None)
    return nn.Sequential(*layers)


class Prototypes(nn.Module):
    """Cosines of points with learned directions, in float32: a linear layer with weight normalization, without bias.

    Args:
        inputs: numbers of a point.
        count: prototypes, so numbers that leave.
        unit: they stay unit vectors; else each learns its length, which begins at 1.
    """

    def __init__(self, inputs: int, count: int, *, unit: bool) -> None:
        super().__init__()
        self.weight = nn.Linear(inputs, count, bias=False).weight
        self.register_parameter("lengths", None if unit else nn.Parameter(torch.ones(count, 1)))

    def forward(self, points: Float[Tensor, "*B D"]) -> Float[Tensor, "*B K"]:
        with torch.autocast(points.device.type, enabled=False):
            # Normalized at each use, which is what weight normalization is; the parameter itself may have any length.
            directions = F.normalize(self.weight, dim=1)
            if self.lengths is not None:
                directions = directions * self.lengths
            return F.linear(F.normalize(points.float(), dim=-1), directions)


class Clusters(nn.Linear):
    """CAPI's clustering head: scores of the directions of points with each cluster, in float32.

    Weights are Normal(0, 1) at first (facebookresearch/capi:model.py).
    """

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, input: Float[Tensor, "*B D"]) -> Float[Tensor, "*B K"]:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(F.normalize(input.float(), dim=-1, eps=1e-7))


def prototype_head(widths: Sequence[int], count: int, *, unit: bool) -> nn.Sequential:
    """DINO's head: `layers` of these widths with GELU between them, then `count` `prototypes`."""
    layers = mlp(widths, norm=False, between=nn.GELU)
    layers.apply(small_normal)
    parts: OrderedDict[str, nn.Module] = OrderedDict(layers=layers)
    parts["prototypes"] = Prototypes(widths[-1], count, unit=unit)
    return nn.Sequential(parts)


def small_normal(layer: nn.Module) -> None:
    """Weights of a linear layer Normal(0, 0.02) and no bias, as ViTs start in DINO; for `Module.apply`."""
    if isinstance(layer, nn.Linear):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class Embedder(nn.Module):
    """An encoder, its pooled tokens, and a projector: what contrastive methods train and keep slow copies of.

    Args:
        pool: `class` token or `mean` of the patch tokens; None takes the class token where there is one.

    Raises:
        UserError: `class` of an encoder that has no class token.
    """

    def __init__(self, encoder: Backbone, pool: Pool | None, projector: nn.Module) -> None:
        super().__init__()
        has_class = getattr(encoder.timm, "has_class_token", False)
        if pool == "class" and not has_class:
            raise UserError("this encoder has no class token: use --method.pool mean")
        self.encoder, self.projector = encoder, projector
        self.takes_class = has_class if pool is None else pool == "class"
        if self.takes_class:
            encoder.timm.reset_classifier(0, "token")  # by this an export, and who measures it, know what was trained

    def features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """What the encoder says about each image, before the projector."""
        return self.pooled(self.encoder(images))

    def pooled(self, tokens: Tokens) -> Float[Tensor, "B D"]:
        """Of what the encoder gives out, what is projected."""
        return tokens.prefix[:, 0] if self.takes_class else tokens.patches.mean(dim=1)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B P"]:
        return self.projector(self.features(images))


class SlowCopy(nn.Module):
    """A module that follows another one as its exponential moving average; it gets no gradient.

    Parameters alone move; running statistics of BatchNorm come from the copy's own forward passes (MoCo).

    Args:
        calm: always in eval mode, so that it drops no paths (DINO).
    """

    module: Any

    def __init__(self, of: nn.Module, *, calm: bool = False) -> None:
        super().__init__()
        # Equal at the beginning: an average of one.
        self.module, self.calm = copy.deepcopy(of).requires_grad_(False), calm

    def train(self, mode: bool = True) -> "SlowCopy":
        return super().train(mode and not self.calm)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B *shape"]) -> Float[Tensor, "B P"]:
        return self.module(images)

    @torch.no_grad()
    def update(self, of: nn.Module, momentum: float) -> None:
        """Keep a share of `momentum` of every parameter and take the rest from `of`: 0 copies, 1 stays."""
        # One call for all parameters: hundreds of small ones would take longer than a small model's step.
        torch._foreach_lerp_([*self.module.parameters()], [*of.parameters()], 1 - momentum)


def check_momentum(momentum: float) -> None:
    """Refuse what is no share."""
    if not 0 <= momentum <= 1:
        raise UserError(f"method.momentum is a share between 0 and 1, got {momentum:g}; 0.99 to 0.999 is usual")
