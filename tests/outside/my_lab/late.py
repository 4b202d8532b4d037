"""A masker from outside of mimkit that decides itself when to start, as docs/masks.md shows it; a Pretrain leaves."""

from dataclasses import dataclass

import torch.nn.functional as F

from mimkit.masks import Signal
from mimkit.masks.trigger import Trigger
from mimkit.recipes.small import mae_mini_48
from my_lab.rare import RareMasker


@dataclass(frozen=True, kw_only=True)
class LateMasker(RareMasker):
    """Rare patches are hidden as soon as the patches of a picture have become different enough."""

    distinct: float = 0.1
    """Mean distance (1 - cosine) of a patch from its picture's mean at which the masks start."""

    def memory(self):
        return Trigger().to_tensor()

    def learn(self, memory, evidence, progress):
        features = F.normalize(evidence.signal(Signal.FEATURES).float(), dim=2)
        mean = F.normalize(features.mean(dim=1, keepdim=True), dim=2)
        distance = (1 - (features * mean).sum(dim=2)).mean().item()
        trigger = Trigger.from_tensor(memory)
        if distance > self.distinct and not trigger.fired:
            trigger = Trigger(armed=True, fired_at=progress)
        return trigger.to_tensor(), {"distance": distance, "trigger_fired": float(trigger.fired)}


def late():
    """MAE on 48 px that hides rare patches once there are any, at the latest halfway."""
    run = mae_mini_48()
    run.method.masker = LateMasker(start=0.5)
    return run
