"""A target from outside of mimkit, as docs/methods.md shows it: nothing enters, a Pretrain leaves."""

from dataclasses import dataclass

import torch

from mimkit.methods.targets.pixels import PatchTarget
from mimkit.recipes.small import mae_mini_48


@dataclass(frozen=True, kw_only=True)
class Moments(PatchTarget):
    """How bright a patch is and how busy: the mean of its numbers and the logarithm of their deviation."""

    floor: float = 0.01
    """Deviation that is added, so that flat patches have a logarithm."""

    def outputs(self, patch, channels):
        return 2

    def __call__(self, patches):
        deviation, mean = torch.std_mean(patches.float(), dim=-1, keepdim=True)
        return torch.cat([mean, (deviation + self.floor).log()], dim=-1)

    def restore(self, prediction, patches):
        return prediction[..., :1].float().expand_as(patches)


def moments():
    """MAE on 48 px that predicts two numbers a patch."""
    run = mae_mini_48()
    run.method.target = Moments()
    return run
