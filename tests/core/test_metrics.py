"""Measures against scikit-learn, closed forms and cases counted by hand."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, recall_score
from sklearn.neighbors import KNeighborsClassifier

from mimkit.core.metrics import (
    accuracy_interval,
    class_balance,
    class_names,
    class_scores,
    effective_rank,
    knn,
    unbalanced,
)


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


@given(st.integers(1, 3000), st.floats(0, 1), st.sampled_from([0.95, 0.5, 0.999]))
def test_accuracy_interval_is_wilson_s(count, share, level):
    hits = round(share * count)
    accuracy, low, high = accuracy_interval(torch.arange(count) < hits, level=level)
    oracle = binomtest(hits, count).proportion_ci(level, method="wilson")
    assert accuracy == hits / count
    assert low == pytest.approx(oracle.low, abs=1e-9) and high == pytest.approx(oracle.high, abs=1e-9)
    assert low <= accuracy <= high and high - low > 1e-4  # never a point


def test_forty_hits_in_forty_are_no_certainty():
    assert accuracy_interval(torch.ones(40, dtype=torch.bool)) == pytest.approx((1.0, 0.912, 1.0), abs=1e-3)
    assert accuracy_interval(torch.zeros(40, dtype=torch.bool)) == pytest.approx((0.0, 0.0, 0.088), abs=1e-3)
    with pytest.raises(ValueError, match="needs a prediction"):
        accuracy_interval(torch.zeros(0, dtype=torch.bool))


labels = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60)


@given(labels)
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_class_scores_are_scikit_learn_s(pairs):
    true, predicted = torch.tensor(pairs).T
    names = ["a", "b", "c", "d", "e", "f", "nobody"]  # the last has no picture
    scores = class_scores(true, predicted, names)
    assert scores["accuracy"] == pytest.approx(accuracy_score(true, predicted), abs=1e-12)
    assert scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(true, predicted), abs=1e-12)
    recalls = recall_score(true, predicted, labels=range(7), average=None, zero_division=0)
    counts = confusion_matrix(true, predicted, labels=range(7)).sum(axis=1)
    assert scores["per_class"].keys() == {names[i] for i in range(7) if counts[i]}
    for name, row in scores["per_class"].items():
        i = names.index(name)
        assert row["accuracy"] == pytest.approx(recalls[i], abs=1e-12) and row["pictures"] == counts[i]
        wrong = [names[p] for t, p in pairs if t == i and p != i]
        assert row["taken_for"] is None if not wrong else wrong.count(row["taken_for"]) == max(map(wrong.count, wrong))
    assert json.loads(json.dumps(scores)) == scores


def test_class_balance_names_the_largest_class_and_those_on_one_side_alone():
    learned, tested = torch.tensor([0, 0, 1, 3]), torch.tensor([0, 2, 2, 2, 1])
    assert class_balance(learned, tested, ["a", "b", "c", "d", "nobody"]) == {
        "largest_class": {"name": "c", "share": 0.6},
        "unseen_classes": ["c"],
        "untested_classes": ["d"],
    }
    assert unbalanced(0.6, 4) and unbalanced(0.95, 2) and not unbalanced(0.6, 2) and not unbalanced(0.1, 10)


def test_class_names_are_numbers_where_there_are_none():
    assert class_names(("a", "b"), torch.tensor([1, 0])) == ["a", "b"]
    assert class_names(("a",), torch.tensor([0]), torch.tensor([2])) == ["a", "1", "2"]
    assert class_names(None, torch.tensor([1]), torch.tensor([], dtype=torch.int64)) == ["0", "1"]
