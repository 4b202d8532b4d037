"""Salience-based masks (SBAM) with an adaptive ratio (AMR): embedded patches enter, a Mask leaves."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mimkit.core.distributed import gather
from mimkit.core.errors import UserError
from mimkit.core.randomness import uniform
from mimkit.masks.informed import InformedMasker, choice
from mimkit.masks.mask import Mask
from mimkit.masks.masker import Curve, Evidence, Progress, Signal, at
from mimkit.masks.random import hidden_count
from mimkit.masks.trigger import Trigger

UNSATURATED = 0.05  # salient fraction at which the masks start, with `trigger = "saturation"`
SATURATED = 0.2  # salience above which a patch counts as salient in `salient_fraction`


@dataclass(frozen=True, kw_only=True)
class SalienceMasker(InformedMasker):
    """SBAM (ECCV 2024, arXiv:2404.08327): patches to which the others are most alike are hidden, up to noise.

    The salience of a patch is the sum of its column of softmax(X X^T), X being the embedded patches with their
    positions (doihye/SBAM:models_mae.py), brought to 0..1 in each picture. With `spread` above 0 each picture has
    a ratio of its own (AMR): `ratio - spread + 2 spread f`, f being the share of its patches above `threshold`.
    """

    signal = Signal.PATCHES
    triggers = ("fixed", "saturation")

    noise: Curve = 0.5
    """Uniform noise of this height is added to the salience, as in the released code."""
    scale: str = "none"
    """Of the products: `none` as released, `width` (divided by the root of the width) or `cosine` (of unit vectors,
    divided by `temperature`)."""
    temperature: float = 0.1
    """Of `scale = cosine`."""
    spread: float = 0.0
    """AMR: how far the ratio of a picture may lie from `ratio`; 0 gives every picture the same."""
    threshold: float | None = None
    """AMR: salience above which a patch counts. By default the median of the pictures that all processes compute at
    once, so that ratios really spread; they then depend on `machine.micro_batch`."""
    pooled: bool = False
    """AMR: one ratio for a batch, the mean of its pictures', as the released code has it."""
    trigger: str = "fixed"
    """`fixed`: begin at `start`. `saturation`: as soon as 5 % of the patches of a few fixed pictures have a salience
    above 0.2, at the latest at `start`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("scale", self.scale, ("none", "width", "cosine"))
        choice("trigger", self.trigger, self.triggers)
        if not self.temperature > 0:
            raise UserError(f"masker.temperature must be above 0, got {self.temperature}")
        if min(self.noise if isinstance(self.noise, tuple) else (self.noise,)) < 0:
            raise UserError(f"masker.noise must be at least 0, got {self.noise}; SBAM uses 0.5")
        for ratio in self.ratio if isinstance(self.ratio, tuple) else (self.ratio,):
            if not (self.spread >= 0 and ratio - self.spread > 0 and ratio + self.spread < 1):
                raise UserError(f"masker.ratio {ratio} +- masker.spread {self.spread} must stay between 0 and 1")

    def score_maps(self, signal: Float[Tensor, "B N D"], grid: tuple[int, int]) -> Float[Tensor, "B N M"]:
        """The salience of each patch, 0..1: one number."""
        if signal.shape[2] == 0:
            return signal
        return salience(signal, scale=self.scale, temperature=self.temperature).unsqueeze(2)

    def memory(self) -> Float[Tensor, "3"] | None:
        return None if self.trigger == "fixed" else Trigger().to_tensor()

    def learn(
        self, memory: Float[Tensor, "..."] | None, evidence: Evidence, progress: float
    ) -> tuple[Float[Tensor, "..."] | None, dict[str, float]]:
        """How far from saturation the salience of the fixed pictures is, and whether that starts the masks."""
        score_maps = self.score_maps(evidence.signal(Signal.PATCHES), evidence.grid)
        fraction = salient_fraction(score_maps[..., 0]).item()
        logs = {"sample_salience": score_maps.mean().item(), "sample_salient_fraction": fraction}
        if memory is None:
            return None, logs
        trigger = Trigger.from_tensor(memory)
        if fraction > UNSATURATED and not trigger.fired:
            trigger = Trigger(armed=True, fired_at=progress)
        return trigger.to_tensor(), logs | {"trigger_fired": float(trigger.fired)}

    def describe(self, score_maps: Float[Tensor, "B N M"], mask: Mask) -> dict[str, Tensor]:
        """How far from saturation the salience is, and how far the ratios spread."""
        if score_maps.shape[2] == 0:
            return {}
        ratios = mask.hidden.float().mean(dim=1)
        spread = {"hidden_least": ratios.min(), "hidden_most": ratios.max()} if mask.ragged else {}
        return {
            "salience": score_maps[..., 0].mean(),
            "salient_fraction": salient_fraction(score_maps[..., 0]),
        } | spread

    def hide(self, score_maps: Tensor, rng_keys: Tensor, progress: Progress, grid: tuple[int, int]) -> Mask:
        s = score_maps[..., 0]
        n = s.shape[1]
        scores = s + at(self.noise, progress) * uniform(rng_keys, n)
        ratio = float(at(self.ratio, progress))
        if self.spread == 0:
            return Mask.from_scores(scores, hidden_count(n, ratio))
        # The median of all pictures, of all processes: with one of each its own, half of every picture would lie above
        # and no ratio would differ.
        threshold = gather(s).median() if self.threshold is None else self.threshold
        ratios = ratio - self.spread + 2 * self.spread * (s > threshold).float().mean(dim=1)
        if self.pooled:
            # Still one number a row, so that both cases go the same way.
            ratios = gather(ratios).mean().expand_as(ratios)
        hide = n - (n * (1 - ratios) + 1e-4).floor().clamp(min=1).long()  # a little more than float32 rounding
        return Mask.from_scores(scores, hide, least=hidden_count(n, ratio - self.spread))


def column_sums(
    patches: Float[Tensor, "B N D"], *, scale: str = "none", temperature: float = 0.1
) -> Float[Tensor, "B N"]:
    """How much of the rows of softmax(X X^T) falls on each patch; the sum over patches is N. In float32."""
    with torch.autocast(patches.device.type, enabled=False):
        x = patches.detach().float()
        if scale == "cosine":
            x = torch.nn.functional.normalize(x, dim=2) / temperature**0.5
        elif scale == "width":
            x = x / x.shape[2] ** 0.25  # x meets itself: its fourth root twice is the root of the width
        # Rows are distributions over patches; the sum of a column is what all give to one patch.
        return torch.bmm(x, x.mT).softmax(dim=2).sum(dim=1)


def salience(patches: Float[Tensor, "B N D"], *, scale: str = "none", temperature: float = 0.1) -> Float[Tensor, "B N"]:
    """SBAM's salience: column sums, brought to 0..1 in each picture; all 0 where they are all equal."""
    sums = column_sums(patches, scale=scale, temperature=temperature)
    low, high = sums.aminmax(dim=1, keepdim=True)
    return (sums - low) / (high - low + 1e-6)


def salient_fraction(salience: Float[Tensor, "B N"]) -> Float[Tensor, ""]:
    """Share of patches above 0.2: about 2 % while the softmax is saturated, at which the masks are as good as random.

    Saturation and the bound are what the released formula gives with untrained patch embeddings.
    """
    return (salience > SATURATED).float().mean()
