"""Settings that DINO and what builds on it share: an encoder enters, an encoder with DINO's head leaves."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mimkit.core.errors import UserError, at_least
from mimkit.model.projector import Embedder, Pool, prototype_head, small_normal
from mimkit.model.vit import Encoder


@dataclass(kw_only=True)
class DistillationSettings:
    """Temperatures, momenta and head of a student that imitates its own slow copy."""

    __slots__ = ()  # what inherits from it and from a MethodConfig has slots

    temperature: float = 0.1
    """The student's numbers are divided by it before the softmax."""
    teacher_temperature: float = 0.04
    """The same of the teacher: lower, so sharper; above 0.07 is unstable."""
    first_temperature: float = 0.04
    """The teacher's temperature at the start."""
    warmup: float = 0.0
    """Share of training in which it goes from the first to the last, linearly."""
    momentum: float = 0.996
    """Share of the teacher that stays in the first step; it rises to 1 in half a cosine."""
    center_momentum: float = 0.9
    """Share of the center that stays in each step."""
    prototypes: int = 65536
    """Numbers of a distribution."""
    hidden: int = 2048
    """Width of the hidden layers of the head."""
    bottleneck: int = 256
    """Numbers of the unit vectors that are compared with the prototypes."""
    norm_last: bool = True
    """Prototypes stay unit vectors; False may be better for small encoders, and less stable."""
    freeze_last: float = 0.01
    """Share of training, from its start, in which the prototypes stay as they are: an epoch in a hundred."""
    pool: Pool | None = None
    """What is projected: the `class` token, or the `mean` of the patches; by default the former where there is one."""

    def embedder(self, encoder: Encoder, *further: str) -> Embedder:
        """The encoder with a head, both with DINO's first weights.

        Raises:
            UserError: a setting cannot be meant; `further` names temperatures besides those of DINO.
        """
        for name in ("temperature", "teacher_temperature", "first_temperature", *further):
            if not getattr(self, name) > 0:
                raise UserError(f"method.{name} must be above 0, got {getattr(self, name):g}; 0.04 to 0.1 is usual")
        for name in ("warmup", "momentum", "center_momentum", "freeze_last"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"method.{name} is a share between 0 and 1, got {getattr(self, name):g}")
        at_least(1, **{f"method.{name}": getattr(self, name) for name in ("prototypes", "hidden", "bottleneck")})
        widths = [encoder.width, *[self.hidden] * 2, self.bottleneck]
        head = prototype_head(widths, self.prototypes, unit=self.norm_last)
        encoder.timm.apply(small_normal)
        return Embedder(encoder, self.pool, head)

    def warmed(self, last: float, moment: float | Float[Tensor, ""]) -> float | Float[Tensor, ""]:
        """The teacher's temperature that ends as `last`, when so much of training is over."""
        first, warmup = self.first_temperature, self.warmup
        return first + (last - first) * torch.as_tensor(moment / warmup).clamp(max=1) if warmup else last
