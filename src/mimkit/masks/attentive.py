"""Attentive masks: the class token's attention to each patch decides. Attention of each head enters, a Mask leaves."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mimkit.core.errors import UserError
from mimkit.core.randomness import uniform
from mimkit.masks.informed import ModelMasker, choice
from mimkit.masks.mask import Mask
from mimkit.masks.masker import Curve, Progress, Signal, at
from mimkit.masks.random import RandomMasker, check_ratio, hidden_count


@dataclass(frozen=True, kw_only=True)
class AttMaskMasker(ModelMasker):
    """AttMask (Kakogeorgiou et al. 2022, arXiv:2203.12719): hide the patches with the highest attention.

    The paper's host is a distillation whose teacher looks, at a ratio drawn from 0.1 to 0.5 for each batch and for
    half of the pictures; here the ratio is a setting and all pictures are masked. Source:
    gkakogeorgiou/attmask:attmask.py.
    """

    signal: ClassVar[Signal] = Signal.ATTENTION

    hides: str = "high"
    """`high`: the patches with the highest attention; `hint`: those but for a few, which stay to give the object away;
    `low`: those with the lowest (the paper's control)."""
    shown: float = 0.03
    """With `hint`: hints as a share of all patches, rounded down. The paper draws it from 0.01 to 0.05; this is its
    mean. Hints are not made up for: as many fewer patches are hidden than the ratio says."""
    top: float = 0.1
    """With `hint`: the share of all patches, rounded down and the highest of them, among which hints are drawn."""

    among: float = 0.0
    """With `low`: the share of all patches, rounded down, the least attended, among which the hidden ones are drawn
    (MST); 0: the lowest of all are hidden."""
    rounded: str = "down"
    """How the number of hidden patches is rounded: `down` as in the code (58 of 196 at 0.3), or `up` as by the other
    maskers (59), which a mixture with one of them needs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("rounded", self.rounded, ("down", "up"))
        choice("hides", self.hides, ("high", "hint", "low"))
        if self.among and not (self.hides == "low" and self.most <= self.among <= 1):
            raise UserError(
                f"masker.among {self.among} is for masker.hides low and lies between masker.ratio {self.most} and 1"
            )
        if not 0 <= self.shown <= self.top <= 1:
            raise UserError(f"masker.shown {self.shown} and masker.top {self.top} need 0 <= shown <= top <= 1")

    @property
    def most(self) -> float:
        """The largest ratio."""
        return max(self.ratio) if isinstance(self.ratio, tuple) else self.ratio

    def score_maps(self, signal: Float[Tensor, "B N H"], grid: tuple[int, int]) -> Float[Tensor, "B N 1"]:
        """Attention, the mean over heads."""
        return signal.float().mean(dim=2, keepdim=True)

    def hide(
        self,
        score_maps: Float[Tensor, "B N M"],
        rng_keys: Int64[Tensor, " B"],
        progress: Progress,
        grid: tuple[int, int],
    ) -> Mask:
        score, n = score_maps[..., 0], score_maps.shape[1]
        ratio = float(at(self.ratio, progress))
        hidden = hidden_count(n, ratio) if self.rounded == "up" else min(max(1, int(n * ratio)), n - 1)
        if self.hides == "low" and self.among:
            lowest = score.argsort(dim=1, stable=True)[:, : max(hidden, int(self.among * n))]
            order = uniform(rng_keys, lowest.shape[1], stream=1).argsort(dim=1)
            drawn = lowest.gather(1, order[:, :hidden])
            return Mask.from_scores(torch.zeros_like(score).scatter(1, drawn, 1.0), hidden)
        if self.hides == "low":
            # The same sort from the other end: ties go by position in both.
            return Mask.from_scores(-score, hidden)
        top = min(int(self.top * n), hidden)  # a hint is one of the hidden patches
        shown = min(int(self.shown * n), top, max(hidden - 1, 0))  # a picture with nothing hidden would have no loss
        if self.hides == "hint" and shown:
            # The order in which `from_scores` hides, so that ties cannot put a hint among patches that are seen anyway.
            highest = score.argsort(dim=1, stable=True)[:, n - top :]
            hints = highest.gather(1, uniform(rng_keys, top, stream=1).argsort(dim=1)[:, :shown])
            score, hidden = score.scatter(1, hints, float("-inf")), hidden - shown
        return Mask.from_scores(score, hidden)


@dataclass(frozen=True, kw_only=True)
class AMTMasker(ModelMasker):
    """Attention-driven masking and throwing (AMT, arXiv:2211.15362; guijiejie/AMT).

    Patches are drawn one after the other with probabilities in proportion to their attention: the first are hidden,
    the next thrown away (not encoded, not decoded, no loss), the rest stay visible. The paper looks with the encoder in
    training at whole pictures every 40 of 400 epochs (`refresh` 40), from epoch 40 on (`start` 0.1).
    """

    signal: ClassVar[Signal] = Signal.ATTENTION

    ratio: Curve = 0.45
    """Share of hidden patches, those with a loss, 0 < ratio < 1; the count is rounded down. A pair: from start to
    end."""
    throw: float = 0.40
    """Share of patches thrown away, rounded down; 0: attention-driven masking alone, in the paper with ratio 0.75."""
    before: float = 0.75
    """Share that random masks hide before `start`; nothing is thrown away then."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ratio(self.before)
        most = max(self.ratio) if isinstance(self.ratio, tuple) else self.ratio
        if not 0 <= self.throw < 1 - most:
            raise UserError(
                f"masker.throw {self.throw} and masker.ratio {most} must leave visible patches: sum below 1"
            )

    def score_maps(self, signal: Float[Tensor, "B N H"], grid: tuple[int, int]) -> Float[Tensor, "B N 1"]:
        """Attention, each head stretched to [0, 1], then the mean over heads; zeros where a head sees no difference."""
        low, high = signal.float().aminmax(dim=1, keepdim=True)
        return ((signal - low) / (high - low).clamp_min(TINY)).mean(dim=2, keepdim=True)

    def __call__(self, score_maps: Tensor, rng_keys: Tensor, progress: Progress, grid: tuple[int, int]) -> Mask:
        if score_maps.shape[2] == 0:
            return RandomMasker(ratio=self.before)(score_maps, rng_keys, progress, grid)
        return self.hide(score_maps, rng_keys, progress, grid)

    def hide(
        self,
        score_maps: Float[Tensor, "B N M"],
        rng_keys: Int64[Tensor, " B"],
        progress: Progress,
        grid: tuple[int, int],
    ) -> Mask:
        n = score_maps.shape[1]
        hidden = max(1, int(n * float(at(self.ratio, progress))))
        return Mask.from_scores(
            race(score_maps[..., 0], rng_keys), hidden, throw=min(int(n * self.throw), n - hidden - 1)
        )


@dataclass(frozen=True, kw_only=True)
class MultinomialMasker(ModelMasker):
    """MaskAlign's attentive masks (CVPR 2023; OpenDriveLab/maskalign:models_pretrain.py): attention is kept.

    Patches are drawn one after the other with probabilities in proportion to their attention, and those drawn stay
    visible: the reverse of AttMask and AMT, for a student that is aligned with a teacher and reconstructs nothing.
    """

    signal: ClassVar[Signal] = Signal.ATTENTION

    ratio: Curve = 0.7
    """Share of hidden patches, 0 < ratio < 1; two numbers: from the first at the start to the second at the end."""

    def score_maps(self, signal: Float[Tensor, "B N H"], grid: tuple[int, int]) -> Float[Tensor, "B N 1"]:
        """Attention, the mean over heads."""
        return signal.float().mean(dim=2, keepdim=True)

    def hide(
        self,
        score_maps: Float[Tensor, "B N M"],
        rng_keys: Int64[Tensor, " B"],
        progress: Progress,
        grid: tuple[int, int],
    ) -> Mask:
        return Mask.from_scores(
            -race(score_maps[..., 0], rng_keys), hidden_count(score_maps.shape[1], float(at(self.ratio, progress)))
        )


TINY = torch.finfo(torch.float32).tiny


def race(weights: Float[Tensor, "B N"], rng_keys: Int64[Tensor, " B"]) -> Float[Tensor, "B N"]:
    """Scores whose descending order is drawn without replacement, with probabilities in proportion to the weights.

    Gumbel noise on the logarithms, exact for any number drawn; weights of 0 come last, in uniform order.
    """
    noise = uniform(rng_keys, weights.shape[1], stream=2).clamp_min(2.0**-25)
    return weights.float().clamp_min(TINY).log() - (-noise.log()).log()
