"""Self-guided masks: features of all patches enter, the object that a normalized cut finds in them is hidden."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mimkit.core.errors import UserError
from mimkit.core.randomness import uniform
from mimkit.masks.informed import ModelMasker, choice
from mimkit.masks.mask import Mask
from mimkit.masks.masker import Curve, Evidence, Progress, Signal, at
from mimkit.masks.ncut import ncut, object_side
from mimkit.masks.random import hidden_count
from mimkit.masks.trigger import Trigger


@dataclass(frozen=True, kw_only=True)
class SelfGuidedMasker(ModelMasker):
    """Self-Guided MAE (NeurIPS 2024, arXiv:2507.19773): hide what belongs to the object, by the model's own features.

    A normalized cut of the patches' similarities gives two sides; patches are ranked by their mean cosine with the
    object's side and the highest are hidden, so that every picture hides the same number. A few patches of the
    object stay visible as hints, fewer and fewer. The paper was not released with code: the layer, the object's
    rule, the affinities, how many hints, and how often the model looks are options, with our defaults.
    """

    signal = Signal.FEATURES
    triggers = ("fixed", "exploitation")

    start: float = 0.125
    """Share of training that comes before, with random masks (paper: 50 of 400 epochs); with `trigger`
    `exploitation`: at the latest then."""
    trigger: str = "fixed"
    """`fixed`: begin at `start`. `exploitation`: as soon as the decoder draws more on mask tokens than on visible
    ones, having drawn less on them before (section 3 of the paper; measured each epoch on a few fixed pictures)."""
    layer: int = -2  # type: ignore[bad-override]
    """Encoder block whose output is cut, counted from the end: -1 is the last, -2 (paper: 11 of 12) the one before."""
    affinity: str = "shift"
    """Weights of the graph: `shift` (1 + cosine) / 2, `clamp` max(cosine, 1e-5), `binary` cosine > 0.2 (TokenCut)."""
    object: str = "argmax"
    """Which side is the object: that of the largest |y| (`argmax`, TokenCut), the `smaller` one, or the one with
    fewer patches at the `border`."""
    hints: Curve = (0.1, 0.0)
    """Share of the hidden patches that is shown as hints; two numbers: from the first at the start of the informed
    masks to the second at the end of training."""
    hint_by: str = "random"
    """Hints are drawn `random` from the object, or by `score`: the less typical patches more often."""
    solver: str = "lanczos"
    """Of the cut: `lanczos`, or the exact and slower `eigh`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("trigger", self.trigger, self.triggers)
        choice("affinity", self.affinity, ("shift", "clamp", "binary"))
        choice("object", self.object, ("argmax", "smaller", "border"))
        choice("hint_by", self.hint_by, ("random", "score"))
        choice("solver", self.solver, ("lanczos", "eigh"))
        if self.layer >= 0:
            raise UserError(f"masker.layer counts from the end: -1 is the last block, got {self.layer}")
        for fraction in self.hints if isinstance(self.hints, tuple) else (self.hints,):
            if not 0 <= fraction <= 1:
                raise UserError(f"masker.hints are shares between 0 and 1, got {self.hints}")

    def score_maps(self, signal: Float[Tensor, "B N D"], grid: tuple[int, int]) -> Float[Tensor, "B N M"]:
        """Relevance of each patch (mean cosine with the object), and 1 on the object's side, 0 on the other."""
        if signal.shape[2] == 0:
            return signal
        cut = ncut(signal, affinity=self.affinity, solver=self.solver)
        inside = object_side(cut, grid, self.object)
        return torch.stack([relevance(signal, inside), inside.float()], dim=2)

    @property
    def needs_exploitation(self) -> bool:
        return self.trigger == "exploitation"

    def memory(self) -> Float[Tensor, "3"] | None:
        return Trigger().to_tensor() if self.needs_exploitation else None

    def learn(
        self, memory: Float[Tensor, "..."] | None, evidence: Evidence, progress: float
    ) -> tuple[Float[Tensor, "..."] | None, dict[str, float]]:
        """Whether the decoder has come to draw more on mask tokens than on visible ones, which starts the masks."""
        if memory is None:
            return None, {}
        of_visible, of_masked = evidence.exploitation()
        visible, masked = of_visible.mean().item(), of_masked.mean().item()
        trigger = Trigger.from_tensor(memory).update(masked, visible, progress)
        logs = {"exploited_masked": masked, "exploited_visible": visible}
        return trigger.to_tensor(), logs | {
            "trigger_armed": float(trigger.armed),
            "trigger_fired": float(trigger.fired),
        }

    def describe(self, score_maps: Float[Tensor, "B N M"], mask: Mask) -> dict[str, Tensor]:
        """Share of the patches that lie in the object, and share of these that are hidden."""
        if score_maps.shape[2] == 0:
            return {}
        inside = score_maps[..., 1] > 0.5
        return {"object": inside.float().mean(), "object_hidden": (inside & mask.hidden).sum() / inside.sum()}

    def hide(self, score_maps: Tensor, rng_keys: Tensor, progress: Progress, grid: tuple[int, int]) -> Mask:
        score, inside = score_maps[..., 0], score_maps[..., 1] > 0.5
        count = hidden_count(score.shape[1], float(at(self.ratio, progress)))
        hidden = descending_rank(score) < count
        if self.hints not in (0, (0, 0)):
            # A tensor on the device: progress may be one, and reading it would make a compiled step wait.
            shown = (torch.ones_like(rng_keys) * count * at(self.hints, self.since(progress))).round().long()
            hidden = with_hints(score, inside, hidden, shown, rng_keys, self.hint_by == "score")
        return Mask.from_scores(hidden.float(), count)


def relevance(features: Float[Tensor, "B N D"], inside: Bool[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """Mean cosine of each patch with the patches inside."""
    with torch.autocast(features.device.type, enabled=False):
        unit = F.normalize(features.detach().float(), dim=2)
        weight = inside.float() / inside.sum(dim=1, keepdim=True).clamp(min=1)
        # The mean of cosines is the cosine with the mean vector: no N x N matrix is made.
        return torch.bmm(unit, torch.bmm(weight.unsqueeze(1), unit).mT).squeeze(2)


def descending_rank(scores: Float[Tensor, "B N"]) -> Int64[Tensor, "B N"]:
    """Place of each patch when sorted from the highest score down; ties by position."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    # The inverse of a permutation by one scatter, where a second argsort would sort again.
    return torch.empty_like(order).scatter(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))


def with_hints(
    score: Float[Tensor, "B N"],
    inside: Bool[Tensor, "B N"],
    hidden: Bool[Tensor, "B N"],
    shown: Int64[Tensor, " B"],
    rng_keys: Int64[Tensor, " B"],
    by_score: bool,
) -> Bool[Tensor, "B N"]:
    """Show `shown` hidden patches of the object and hide as many visible ones instead, those of the next highest score.

    Fewer where the object has not as many hidden patches, or the picture not as many visible ones.
    """
    n = score.shape[1]
    preference = -(
        -uniform(rng_keys, n, stream=1).clamp(min=1e-7).log()
    ).log()  # Gumbel noise: a draw without replacement
    if by_score:  # the logarithm of a weight, added to Gumbel noise, draws in proportion to the weight
        low, high = score.aminmax(dim=1, keepdim=True)
        preference = preference + (1 - (score - low) / (high - low + 1e-6) + 1e-6).log()
    candidates = hidden & inside
    count = torch.minimum(shown, torch.minimum(candidates.sum(dim=1), (~hidden).sum(dim=1))).unsqueeze(1)
    # Ranks below a count, not top-k: the count differs from picture to picture, and the shapes stay.
    hints = descending_rank(preference.masked_fill(~candidates, -torch.inf)) < count
    # As many patches as were shown are hidden instead: the ratio stays what it was.
    substitutes = descending_rank(score.masked_fill(hidden, -torch.inf)) < count
    return (hidden & ~hints) | substitutes
