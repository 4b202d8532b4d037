"""Measures: features, labels and predictions enter, numbers leave. Pure functions on tensors."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

UNBALANCED = 1.5  # times an equal share: from there the largest class makes an accuracy mislead
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


def accuracy_interval(correct: Bool[Tensor, " Q"], *, level: float = 0.95) -> tuple[float, float, float]:
    """Accuracy with Wilson's score interval: (accuracy, low, high), each in 0..1.

    The shares of hits that such a count would not contradict (Wilson 1927; Brown, Cai, DasGupta 2001): no point where
    all are right or wrong. Raises ValueError when nothing was predicted.
    """
    count = len(correct)
    if count == 0:
        raise ValueError("an accuracy needs a prediction")
    accuracy = int(correct.sum()) / count
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = accuracy + z**2 / (2 * count)
    reach = z * math.sqrt(accuracy * (1 - accuracy) / count + (z / (2 * count)) ** 2)
    whole = 1 + z**2 / count
    # Where all are right or wrong the bound is exactly the accuracy, which rounding would miss by a hair.
    return (
        accuracy,
        min(accuracy, max(0.0, (middle - reach) / whole)),
        max(accuracy, min(1.0, (middle + reach) / whole)),
    )


def class_names(classes: Sequence[str] | None, *labels: Int64[Tensor, " _"]) -> list[str]:
    """The names of all classes; numbers where the set has no names, or a label is beyond them."""
    most = max((int(values.max()) for values in labels if len(values)), default=-1)
    names = list(classes or ())
    return names + [str(number) for number in range(len(names), most + 1)]


def class_scores(true: Int64[Tensor, " Q"], predicted: Int64[Tensor, " Q"], names: Sequence[str]) -> dict[str, Any]:
    """What predictions are worth, as JSON.

    Args:
        true, predicted: numbers of classes, at least 0 and below the number of `names`.
        names: of all classes.

    Returns:
        accuracy with its 95 % interval (low, high); balanced_accuracy, the mean of the accuracies of the classes that
        occur in `true`; per_class {name: {accuracy, pictures, taken_for}} of these, where `taken_for` is what the
        mistakes were most often taken for, None without any.
    """
    accuracy, low, high = accuracy_interval(predicted == true)
    per_class = scores_per_class(confusion_counts(true, predicted, len(names)), names)
    balanced = sum(scores["accuracy"] for scores in per_class.values()) / len(per_class)
    scores = {"accuracy": accuracy, "low": low, "high": high, "balanced_accuracy": balanced}
    return scores | {"per_class": per_class}


def confusion_counts(true: Int64[Tensor, " N"], predicted: Int64[Tensor, " N"], classes: int) -> Int64[Tensor, "K K"]:
    """How many pictures of each class (rows) were taken for each (columns)."""
    pairs = true * classes + predicted  # each pair of classes as one number, that bincount can count
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def scores_per_class(confusion: Int64[Tensor, "K K"], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of classes that were tested: share right, how many pictures, and what the others were most often taken for."""
    scores = {}
    for i, (name, row) in enumerate(zip(names, confusion, strict=True)):
        if count := int(row.sum()):
            mistakes = row.clone()
            mistakes[i] = 0
            mistaken = names[int(mistakes.argmax())] if mistakes.any() else None
            scores[name] = {"accuracy": int(row[i]) / count, "pictures": count, "taken_for": mistaken}
    return scores


def class_balance(
    learned: Int64[Tensor, " N"], tested: Int64[Tensor, " Q"], names: Sequence[str]
) -> dict[str, dict[str, Any] | list[str]]:
    """What accuracies have to be read against, as JSON.

    Returns:
        largest_class {name, share}: of the tested pictures, what always naming this class would score;
        unseen_classes: that are tested and were never learned, whose pictures can but count as wrong;
        untested_classes: that were learned and are not tested, of which the accuracies say nothing.
    """
    learned_counts, tested_counts = (torch.bincount(labels, minlength=len(names)) for labels in (learned, tested))
    largest = int(tested_counts.argmax())
    share = int(tested_counts[largest]) / max(1, len(tested))
    unseen, untested = ((tested_counts > 0) & (learned_counts == 0)), ((learned_counts > 0) & (tested_counts == 0))
    return {
        "largest_class": {"name": names[largest], "share": share},
        "unseen_classes": [names[i] for i in unseen.nonzero()[:, 0].tolist()],
        "untested_classes": [names[i] for i in untested.nonzero()[:, 0].tolist()],
    }


def unbalanced(share: float, classes: int) -> bool:
    """Whether the largest class has so much more than its part that an accuracy alone misleads."""
    return share > UNBALANCED / classes
