"""An informed masker from outside of mimkit, as docs/masks.md shows it: nothing enters, a Pretrain leaves."""

from dataclasses import dataclass

import torch.nn.functional as F

from mimkit.core.randomness import uniform
from mimkit.masks import Mask, Signal
from mimkit.masks.informed import ModelMasker
from mimkit.masks.random import hidden_count
from mimkit.recipes.small import mae_mini_48


@dataclass(frozen=True, kw_only=True)
class RareMasker(ModelMasker):
    """Hide the patches whose features are least like the picture's mean."""

    signal = Signal.FEATURES
    layer: int = -1
    """Encoder block whose output is compared, counted from the end."""
    noise: float = 0.1
    """Uniform noise of this height on the scores."""

    def score_maps(self, signal, grid):
        unit = F.normalize(signal.float(), dim=2)
        mean = F.normalize(unit.mean(dim=1, keepdim=True), dim=2)
        return 1 - (unit * mean).sum(dim=2, keepdim=True)

    def hide(self, score_maps, rng_keys, progress, grid):
        scores = score_maps[..., 0] + self.noise * uniform(rng_keys, score_maps.shape[1])
        return Mask.from_scores(scores, hidden_count(score_maps.shape[1], self.ratio))


def rare():
    """MAE on 48 px that hides rare patches after a quarter of training."""
    run = mae_mini_48()
    run.method.masker = RareMasker(start=0.25)
    return run
