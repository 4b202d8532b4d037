"""Measures: features, labels and predictions enter, numbers leave. Pure functions on tensors."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mimkit.core.randomness import integer

_AT_ONCE = 1 << 25  # similarities held at once


def knn(
    bank: Float[Tensor, "N D"],
    bank_labels: Int64[Tensor, " N"],
    queries: Float[Tensor, "Q D"],
    *,
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Int64[Tensor, " Q"]:
    """Classes of the queries by their `k` nearest neighbors in cosine similarity.

    Each neighbor votes with exp(similarity / temperature); features are not centered. Wu et al. 2018
    (arXiv:1805.01978), as DINO evaluates. `k` is cut to the size of the bank. Queries go in pieces whose
    similarities take at most 128 MB.
    """
    bank = F.normalize(bank.float(), dim=1)
    labels = bank_labels.to(bank.device)
    predicted = []
    for piece in queries.split(max(1, _AT_ONCE // len(bank))):
        similarity, nearest = (F.normalize(piece.float(), dim=1) @ bank.T).topk(min(k, len(bank)), dim=1)
        # Shifting by the largest similarity leaves the ranking of classes as it is and keeps exp in range.
        votes = ((similarity - similarity[:, :1]) / temperature).exp()
        total = votes.new_zeros(len(piece), classes).scatter_add(1, labels[nearest], votes)
        predicted.append(total.argmax(dim=1))
    return torch.cat(predicted).cpu()


def effective_rank(features: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """RankMe: exp of the entropy of the normalized singular values; between 1 and min(N, D).

    Garrido et al. 2023 (arXiv:2210.02885), equation 1; features are not centered. A value that falls towards 1
    is collapse.
    """
    # float64: near collapse the small singular values are rounding in float32, and the rank would look higher.
    values = torch.linalg.svdvals(features.double())
    fraction = values / values.sum().clamp(min=1e-30) + 1e-7
    return torch.exp(-(fraction * fraction.log()).sum()).float()


def accuracy_interval(
    correct: Bool[Tensor, " Q"], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Accuracy with its bootstrap interval: (accuracy, low, high), each in 0..1.

    Resampling hits and misses with replacement is drawing from a binomial distribution, and done so.
    """
    count = len(correct)
    accuracy = correct.double().mean().item()
    # A seed of its own: the same hits give the same interval, whatever was drawn before.
    generator = np.random.default_rng(integer("bootstrap", seed))
    means = generator.binomial(count, accuracy, size=resamples) / count
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return accuracy, float(low), float(high)
