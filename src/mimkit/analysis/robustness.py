"""Robustness to changed depth: features of a whole and a changed network enter, how much they differ leaves."""

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mimkit.core.metrics import knn


def relative_change(features: Float[Tensor, "B D"], reference: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """|f - f_0| / |f_0| of each picture: 0 for the untouched network, which is the control.

    A cheap proxy for fine-tuning with dropped or permuted blocks (Xie et al. 2023, arXiv:2205.13543), where supervised
    models bear dropped last blocks and masked ones a changed order. It tells how much, not whether it was needed.
    """
    return (features - reference).norm(dim=1) / reference.norm(dim=1)


@contextmanager
def swapped(blocks: nn.Sequential, first: int) -> Generator[None]:
    """The network with the blocks `first` and `first + 1` in each other's place, while the context lasts."""
    pair: list[Any] = [blocks[first], blocks[first + 1]]
    blocks[first], blocks[first + 1] = pair[1], pair[0]
    try:
        yield
    finally:
        blocks[first], blocks[first + 1] = pair


def knn_accuracy(features: Float[Tensor, "n D"], labels: Int64[Tensor, " n"]) -> tuple[float, float]:
    """kNN (k = 20) of every second picture in the others: accuracy in 0..1 and its standard error."""
    # Every second, as the pictures come in an order by address: a random half.
    queries = torch.arange(len(features)) % 2 == 1
    classes = int(labels.max()) + 1
    predicted = knn(features[~queries], labels[~queries], features[queries], classes=classes)
    accuracy = (predicted == labels[queries]).double().mean().item()
    return accuracy, math.sqrt(accuracy * (1 - accuracy) / int(queries.sum()))
