"""Assignments: scores of a batch against clusters enter, shares of each cluster and their entropies leave."""

import torch
from jaxtyping import Float
from torch import Tensor

from mimkit.core.distributed import maximum, total


@torch.no_grad()
def sinkhorn(scores: Float[Tensor, "B *places K"], iterations: int = 3) -> Float[Tensor, "B *places K"]:
    """Shares of the clusters, of which each takes about as many pictures of the batch of all processes.

    exp(scores) is divided in turns by the sums over pictures, a cluster at a time, and by the sums over clusters. The
    latter come last: what leaves sums to 1 over clusters, and over pictures to about the same for each.

    Args:
        scores: logarithms of what is to be balanced, logits over a temperature or log-probabilities. Pictures, as
            many in each process, come first and clusters last; each place between is balanced by itself, as each
            patch of the grid in CAPI (facebookresearch/capi:model.py). MSN has no places.
        iterations: of both divisions; 0 is a softmax.
    """
    with torch.autocast(scores.device.type, enabled=False):
        shares = scores.float()
        for _ in range(iterations):
            # Logarithms throughout: far from its clusters a picture's numbers would all be 0, and their sum too.
            own = shares.logsumexp(dim=0, keepdim=True)
            most = maximum(own.clone())
            shares = (shares - most - total((own - most).exp()).log()).log_softmax(dim=-1)
        return shares.softmax(dim=-1)


def cross_entropy(target: Float[Tensor, "*B K"], scores: Float[Tensor, "*B K"]) -> Float[Tensor, "*B"]:
    """Of distributions and the softmax of scores."""
    return -(target * scores.float().log_softmax(dim=-1)).sum(dim=-1)


def entropy(shares: Float[Tensor, "*B K"]) -> Float[Tensor, "*B"]:
    """Of distributions, in nats; where a share is 0 it adds nothing."""
    return -(shares * shares.clamp_min(torch.finfo(shares.dtype).tiny).log()).sum(dim=-1)
