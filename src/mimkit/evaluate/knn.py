"""kNN: features of two sets with labels enter, the accuracy of nearest neighbors for each pool leaves."""

from collections.abc import Iterable

import torch

from mimkit.core.metrics import accuracy_interval, knn
from mimkit.evaluate.features import Features


def evaluate_knn(
    train: Features,
    test: Features,
    *,
    k: int = 20,
    temperature: float = 0.07,
    pools: Iterable[str] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, dict[str, float]]:
    """Accuracy on `test` by neighbors in `train`, with its 95 % interval: {pool: {accuracy, low, high}}.

    See `core.metrics.knn`. Both sets need labels; `pools` are all that the features have, by default.
    """
    assert train.labels is not None and test.labels is not None
    # Of both sets: a class that only the test has cannot be predicted, but its pictures count as wrong.
    classes = int(torch.cat([train.labels, test.labels]).max()) + 1
    results = {}
    for pool in train.values if pools is None else pools:
        bank, queries = train.values[pool].to(device), test.values[pool].to(device)
        predicted = knn(bank, train.labels, queries, classes=classes, k=k, temperature=temperature)
        accuracy, low, high = accuracy_interval(predicted == test.labels)
        results[pool] = {"accuracy": accuracy, "low": low, "high": high}
    return results
