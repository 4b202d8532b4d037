"""Label values of every kind become numbers, names and doubts."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mimkit.core.errors import UserError
from mimkit.data.classes import in_order, label_column, number_texts, number_values

NOTHING = [None, math.nan, "", "  ", -1, -7, -1.0, np.float32("nan")]


@pytest.mark.parametrize(
    ("values", "numbers", "classes", "named"),
    [
        ([0, 1, 1], [0, 1, 1], ("0", "1"), False),
        ([3_000_684, 1_440_764, -1], [1, 0, -1], ("1440764", "3000684"), False),
        ([10, 9, 2**70], [1, 0, 2], ("9", "10", str(2**70)), False),
        ([False, True, None], [0, 1, -1], ("0", "1"), False),
        ([1.0, 0.0, math.nan], [1, 0, -1], ("0", "1"), False),
        (["dog", "cat", "", None], [1, 0, -1, -1], ("cat", "dog"), True),
        (["10", "9"], [1, 0], ("9", "10"), True),
        ([1, "1", True, 1.0, "b"], [0, 0, 0, 0, 1], ("1", "b"), False),
        ([np.int64(4), np.uint8(2)], [1, 0], ("2", "4"), False),
    ],
)
def test_values_that_are_labels(values, numbers, classes, named):
    labels = number_values(values)
    assert (labels.numbers.tolist(), labels.classes, labels.named) == (numbers, classes, named)
    assert labels.numbers.dtype == torch.int64 and not labels.reason


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([0.5, 1.0], "0.5 is no whole number"),
        ([math.inf, 1.0], "inf is no whole number"),
        ([[1, 2], [3]], "not a list"),
        ([{"a": 1}], "not a group"),
        ([b"x"], "not bytes"),
        ([float(value) for value in range(100)], "100 different numbers in 100 rows"),
        ([None, -1, math.nan, ""], "all 4 labels are empty"),
    ],
)
def test_values_that_are_none_say_why(values, reason):
    labels = number_values(values)
    assert labels.numbers is None and labels.classes is None and reason in labels.reason


def test_names_of_integers_are_all_classes():
    labels = number_values([2, 0, -1], ["ant", "bee", "cow"])
    assert labels.numbers.tolist() == [2, 0, -1] and labels.classes == ("ant", "bee", "cow") and labels.named
    assert "no name among the 2" in number_values([2], ["ant", "bee"]).reason


@pytest.mark.parametrize(
    ("texts", "numbers", "classes", "named"),
    [
        (["10", "9", "2"], [2, 1, 0], ("2", "9", "10"), False),
        (["007", "1"], [1, 0], ("1", "007"), False),
        (["1.0", "0.0", "nan"], [1, 0, -1], ("0", "1"), False),
        (["none", "None", "scratch"], [0, -1, 1], ("none", "scratch"), True),
        (["1_2", "1_3"], [0, 1], ("1_2", "1_3"), True),
        (["-2", "3", "-1"], [-1, 0, -1], ("3",), False),
        ([f"{2**60 + 1}", f"{2**60}", "-5"], [1, 0, -1], (f"{2**60}", f"{2**60 + 1}"), False),
    ],
)
def test_words_of_a_text(texts, numbers, classes, named):
    labels = number_texts(texts)
    assert (labels.numbers.tolist(), labels.classes, labels.named) == (numbers, classes, named)


def test_words_that_measure_something_are_no_labels():
    assert "0.25 is no whole number" in number_texts(["0.25", "1"]).reason


VALUES = st.one_of(
    st.none(),
    st.just(math.nan),
    st.integers(-3, 10**12),
    st.booleans(),
    st.text(max_size=4),
    st.integers(0, 5).map(float),
)


@settings(deadline=None, max_examples=200)
@given(st.lists(VALUES, max_size=8), st.randoms())
def test_any_mix_is_numbered_alike_in_any_order(values, random):
    labels = number_values(values)
    if labels.numbers is None:
        assert labels.classes is None
        return
    numbers, classes = labels.numbers.tolist(), labels.classes
    assert sorted(set(numbers) - {-1}) == list(range(len(classes))) and len(set(classes)) == len(classes)
    for value, number in zip(values, numbers, strict=True):
        blank = value is None or (value.strip() == "" if isinstance(value, str) else not value >= 0)
        text = value.strip() if isinstance(value, str) else None if blank else str(int(value))
        assert (number == -1) == blank and (blank or classes[number] == text)
    order = list(range(len(values)))
    random.shuffle(order)
    again = number_values([values[place] for place in order])
    assert again.classes == classes and again.numbers.tolist() == [numbers[place] for place in order]


def test_order_of_classes():
    assert in_order(["b", "10", "9", "a", "9"]) == ("9", "10", "a", "b")


def test_the_column_of_labels():
    assert label_column(["image", "text"], None, "x") == (None, "")
    assert label_column(["image", "Class"], None, "x") == ("Class", "")
    column, note = label_column(["coarse", "category", "label"], None, "x")
    assert column == "label" and "--label-column" in note and "category" in note
    assert label_column(["coarse", "label"], "coarse", "x") == ("coarse", "")
    with pytest.raises(UserError, match=r"x has no column 'breed' .*: it has image, label"):
        label_column(["image", "label"], "breed", "x")
