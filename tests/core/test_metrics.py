"""Measures against scikit-learn, closed forms and cases counted by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from mimkit.core.metrics import accuracy_interval, effective_rank, knn


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("k", "temperature"), [(20, 0.07), (1, 0.07), (7, 0.5)])
def test_knn_is_the_weighted_neighbors_of_scikit_learn(k, temperature):
    labels = torch.arange(400) % 5
    centers = normal(5, 16, seed=1) * 0.5
    # Lengths differ, which cosine similarity must not see; more queries than one piece of them.
    bank = (normal(400, 16) + centers[labels]) * torch.linspace(0.1, 9, 400)[:, None]
    queries = normal(1100, 16, seed=2) + centers[torch.arange(1100) % 5]
    oracle = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / temperature)
    ).fit(bank.double().numpy(), labels.numpy())
    predicted = knn(bank, labels, queries, classes=5, k=k, temperature=temperature)
    assert predicted.tolist() == oracle.predict(queries.double().numpy()).tolist()


def test_knn_weighs_one_close_neighbor_against_two_far_ones_by_temperature():
    angles = torch.tensor([0.0, 60.0, -60.0, 180.0]).deg2rad()
    bank, labels = torch.stack([angles.cos(), angles.sin()], 1), torch.tensor([0, 1, 1, 2])
    query = torch.tensor([[5.0, 0.0]])
    # Votes: exp(1 / t) for class 0, 2 exp(1/2 / t) for class 1: even at t = 1 / (2 ln 2) = 0.72.
    vote = {t: knn(bank, labels, query, classes=3, k=3, temperature=t).item() for t in (0.07, 0.70, 0.74)}
    assert vote == {0.07: 0, 0.70: 0, 0.74: 1}
    assert knn(bank, labels, query, classes=3, k=1, temperature=0.74).item() == 0
    assert knn(bank, labels, query, classes=3, k=99, temperature=0.74).item() == 1  # all four vote


def test_knn_takes_half_precision_and_shifted_features_are_not_centered():
    bank = torch.tensor([[10.0, 1.0], [10.0, -1.0]])
    assert knn(bank.bfloat16(), torch.tensor([0, 1]), torch.tensor([[1.0, 0.05]]).bfloat16(), classes=2) == 0
    # Centered, the first query would be nearest to the second row, and the answer 1.
    far = torch.tensor([[0.0, 3.0], [9.0, 0.0]])
    assert knn(bank, torch.tensor([0, 1]), far, classes=2, k=1).tolist()[0] == 0


def closed_rank(values: list[float]) -> float:
    fraction = [value / sum(values) + 1e-7 for value in values]
    return math.exp(-sum(p * math.log(p) for p in fraction))


@pytest.mark.parametrize("values", [[1.0] * 8, [3.0, 1.0], [4.0, 0.0, 0.0], [9.0, 5.0, 2.0, 1e-3]])
def test_effective_rank_of_known_singular_values(values):
    left = torch.linalg.qr(normal(50, len(values)).double())[0]
    right = torch.linalg.qr(normal(12, len(values), seed=1).double())[0]
    features = left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T
    expected = closed_rank(values + [0.0] * (12 - len(values)))
    for scale in (1.0, 1e4):
        assert effective_rank(scale * features).item() == pytest.approx(expected, rel=1e-5)
    assert effective_rank(features.float()).item() == pytest.approx(expected, rel=1e-4)


def test_effective_rank_of_a_collapse_is_one_and_of_nothing_is_finite():
    assert effective_rank(torch.ones(100, 32)).item() == pytest.approx(1, abs=1e-3)
    assert effective_rank(normal(64, 1).expand(64, 16)).item() == pytest.approx(1, abs=1e-3)
    assert math.isfinite(effective_rank(torch.zeros(10, 4)).item())


@pytest.mark.parametrize(("level", "deviations"), [(0.95, 1.9600), (0.5, 0.6745)])
def test_accuracy_interval_is_the_normal_approximation_for_many_queries(level, deviations):
    correct = torch.arange(20_000) % 10 < 7
    accuracy, low, high = accuracy_interval(correct, level=level)
    spread = deviations * math.sqrt(0.7 * 0.3 / 20_000)
    assert accuracy == pytest.approx(0.7, abs=1e-12)
    assert accuracy - low == pytest.approx(spread, rel=0.08)
    assert high - accuracy == pytest.approx(spread, rel=0.08)


def test_accuracy_interval_depends_on_its_seed_alone():
    correct = torch.arange(300) % 3 == 0
    first = accuracy_interval(correct)
    np.random.seed(1)
    torch.manual_seed(1)
    assert accuracy_interval(correct) == first
    assert accuracy_interval(correct, seed=1) != first
    assert accuracy_interval(torch.ones(50, dtype=torch.bool)) == (1.0, 1.0, 1.0)
