"""kNN: features of two sets with labels enter, the accuracy of nearest neighbors for each pool leaves."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from mimkit.core.metrics import class_names, class_scores, knn
from mimkit.evaluate.features import Features


def evaluate_knn(
    train: Features,
    test: Features,
    *,
    k: int = 20,
    temperature: float = 0.07,
    pools: Iterable[str] | None = None,
    device: torch.device | str = "cpu",
    classes: Sequence[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Accuracy on `test` by neighbors in `train`: {pool: scores}, see `core.metrics.class_scores`.

    See `core.metrics.knn`. Both sets need labels, which `classes` names; `pools` are all that the features have, by
    default.
    """
    assert train.labels is not None and test.labels is not None
    # Of both sets: a class that only the test has cannot be predicted, but its pictures count as wrong.
    names = class_names(classes, train.labels, test.labels)
    results = {}
    for pool in train.values if pools is None else pools:
        bank, queries = train.values[pool].to(device), test.values[pool].to(device)
        predicted = knn(bank, train.labels, queries, classes=len(names), k=k, temperature=temperature)
        results[pool] = class_scores(test.labels, predicted, names)
    return results
