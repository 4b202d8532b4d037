"""A mixture of two maskers: each picture takes the mask of one of them. Two Masks enter, a Mask leaves."""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mimkit.core.errors import UserError
from mimkit.core.randomness import uniform
from mimkit.masks.mask import Mask
from mimkit.masks.masker import Curve, Evidence, Masker, Progress, Signal, at
from mimkit.masks.random import RandomMasker
from mimkit.masks.salience import SalienceMasker


@dataclass(frozen=True, kw_only=True)
class MixtureMasker(Masker):
    """Each picture takes the mask of `other` with probability `fraction`, else that of `one`.

    Both must hide equally many patches in one view. A fraction that changes with training turns one masker gradually
    into the other, as HPM's and SemMAE's curricula do.
    """

    one: Masker = field(default_factory=RandomMasker)
    """The masker of the rest; it must look at nothing."""
    other: Masker = field(default_factory=SalienceMasker)
    """A masker that may look at something."""
    fraction: Curve = 0.5
    """Share of pictures for `other`; two numbers: from the first at the start to the second at the end."""

    def __post_init__(self) -> None:
        if not all(
            0 <= value <= 1 for value in (self.fraction if isinstance(self.fraction, tuple) else (self.fraction,))
        ):
            raise UserError(f"masker.fraction is a share of pictures between 0 and 1, got {self.fraction}")

    def reads(self, progress: float) -> Signal:
        if self.one.reads(progress) is not Signal.NONE:
            raise UserError(
                f"masker.one of a mixture must look at nothing, {type(self.one).__name__} does: let it be masker.other"
            )
        return self.other.reads(progress)

    @property
    def guide(self) -> Masker:
        return self.other.guide

    @property
    def ramps(self) -> bool:
        return self.one.ramps or self.other.ramps

    @property
    def needs_exploitation(self) -> bool:
        return self.other.needs_exploitation

    def memory(self) -> Float[Tensor, "..."] | None:
        return self.other.memory()

    def learn(
        self, memory: Float[Tensor, "..."] | None, evidence: Evidence, progress: float
    ) -> tuple[Float[Tensor, "..."] | None, dict[str, float]]:
        return self.other.learn(memory, evidence, progress)

    def recall(self, memory: Float[Tensor, "..."]) -> Masker:
        return replace(self, other=self.other.recall(memory))

    def start_at(self, progress: float) -> Masker:
        return replace(self, other=self.other.start_at(progress))

    def describe(self, score_maps: Float[Tensor, "B N M"], mask: Mask) -> dict[str, Tensor]:
        return self.other.describe(score_maps, mask)

    def score_maps(self, signal: Float[Tensor, "B N C"], grid: tuple[int, int]) -> Float[Tensor, "B N M"]:
        return self.other.score_maps(signal, grid) if signal.shape[2] else signal

    def __call__(self, score_maps: Tensor, rng_keys: Tensor, progress: Progress, grid: tuple[int, int]) -> Mask:
        # Both maskers make masks for all pictures, and each picture takes one: choosing first would give two batches of
        # sizes that change from step to step, which a compiled step cannot have.
        nothing = score_maps[..., :0]
        plain_mask = self.one(nothing, rng_keys, progress, grid)
        informed_mask = self.other(score_maps, rng_keys, progress, grid)
        same_shape = all(
            mask.views == 1 and not mask.ragged and mask.decoded is None for mask in (plain_mask, informed_mask)
        )
        if not same_shape or plain_mask.visible.shape != informed_mask.visible.shape:
            raise UserError(
                f"{type(self.one).__name__} and {type(self.other).__name__} do not hide equally many patches: "
                "give both the same ratio, one view, no spread or throwing, and AttMask's `rounded` as up"
            )
        # A stream of its own: the coin must not be the noise by which one of the two draws.
        informed = (uniform(rng_keys, 1, stream=7) < at(self.fraction, progress)).expand_as(plain_mask.hidden)
        slots = informed[:, : plain_mask.visible.shape[1]]
        return Mask(
            torch.where(informed, informed_mask.hidden, plain_mask.hidden),
            torch.where(slots, informed_mask.visible, plain_mask.visible),
        )
