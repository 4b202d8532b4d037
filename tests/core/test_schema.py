"""Schemas: what fits is given back as annotated, what does not is answered with its place and what was expected."""

import os
import re
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import pytest

from mimkit.core.config import check_dict, from_dict, to_dict
from mimkit.core.errors import UserError
from mimkit.core.files import read_json
from mimkit.core.schema import Count, Fraction, Misfit, fit, plain
from mimkit.recipes import find_recipe


class Row(TypedDict):
    name: str
    share: NotRequired[Fraction]


@pytest.mark.parametrize(
    ("value", "annotation", "result"),
    [
        (3, int, 3),
        (3, float, 3),
        (None, int | None, None),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([1, 2.5], tuple[float, float], (1, 2.5)),
        ([3, 4], int | tuple[int, int], (3, 4)),
        ("a", Literal["a", "b"], "a"),
        ({"a": [1]}, dict[str, list[Count]], {"a": [1]}),
        ({"name": "x", "later": [1]}, Row, {"name": "x", "later": [1]}),
        ([{"x": None}], Any, [{"x": None}]),
    ],
)
def test_what_fits_is_given_back(value, annotation, result):
    assert fit(value, annotation) == result and type(fit(value, annotation)) is type(result)


@pytest.mark.parametrize(
    ("value", "annotation", "says"),
    [
        ("x", Fraction, 'there: expected a number between 0 and 1, got "x"'),
        (1.5, Fraction, "there: expected a number between 0 and 1, got 1.5"),
        (float("nan"), float, "there: expected a number, got NaN"),
        (True, int, "there: expected a whole number, got true"),
        (1, bool, "there: expected true or false, got 1"),
        (2.0, int, "there: expected a whole number, got 2.0"),
        (-1, Count, "there: expected a whole number of at least 0, got -1"),
        ([1, "x"], tuple[int, ...], 'there.1: expected a whole number, got "x"'),
        ([1], tuple[int, int], "there: expected a list of 2, each of it a whole number, got [1]"),
        ({}, int | tuple[int, int], "there: expected a whole number or a list of 2, each of it a whole number, got {}"),
        (1, Literal["a", "b"], 'there: expected "a" or "b", got 1'),
        ([], dict[str, int], "there: expected an object, got []"),
        ({"share": 0.5}, Row, "there.name is missing"),
        ({"name": "x", "share": 2}, Row, "there.share: expected a number between 0 and 1, got 2"),
        ("x" * 99, int, 'there: expected a whole number, got "xxxxx'),
    ],
)
def test_what_does_not_is_answered_with_its_place(value, annotation, says):
    with pytest.raises(Misfit, match=re.escape(says)):
        fit(value, annotation, "there")


def test_what_nothing_can_hold_is_refused():
    deep: list = []
    for _ in range(70):
        deep = [deep]
    for value, says in ((2**63, "below 2^63"), ("a\0b", "without NUL"), ("\ud800", "surrogates"), (deep, "64 levels")):
        with pytest.raises(Misfit, match=re.escape(says)):
            plain({"a": [value]})
    assert plain({"a": [2**63 - 1, "\udcff", None]})  # the name of a file may hold any byte


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (
            "method.masker.ratio",
            "x",
            'method.masker.ratio: expected a number or a list of 2, each of it a number, got "x"',
        ),
        ("method.masker.ratio", 7.0, "method.masker: "),
        ("method.masker", None, "method.masker: expected an object, got null"),
        ("method.masker.class", "WarmupCosine", 'method.masker.class: expected a Masker, got "WarmupCosine"'),
        ("images.size", [28, "x"], "images.size: expected a whole number or a list of 2"),
        ("images.flips", "up", 'images.flips: expected "left-right" or "dihedral", got "up"'),
        ("encoder", [], "encoder: expected an object, got []"),
        ("epochs", 1e3, "epochs: expected a whole number, got 1000.0"),
        ("data", "photos", 'data: expected a list, each of it a text, got "photos"'),
        ("machine.threads", True, "machine.threads: expected a whole number or null, got true"),
    ],
)
def test_a_setting_of_a_wrong_kind_is_named(place, value, says):
    data = to_dict(find_recipe("mae_mini_28"))
    *path, last = place.split(".")
    inner = data
    for key in path:
        inner = inner[key]
    inner[last] = value
    with pytest.raises(UserError, match=re.escape(says)):
        from_dict(data)
    if value != 7.0 and last != "class":  # ranges are known to the class alone
        with pytest.raises(UserError, match=re.escape(says)):
            check_dict(data)


def test_settings_without_their_classes_are_read_as_far_as_they_are_known():
    data = to_dict(find_recipe("mae_mini_28"))
    data["method"]["masker"] = {"class": "elsewhere:Masker", "ratio": "x"}
    data["later"] = 3
    assert check_dict(data) == data


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "deep").write_text("[" * 100_000)
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), tmp_path / "deep", tmp_path / "none"):
        with pytest.raises(UserError, match="cannot be read as JSON"):
            read_json(path)
    (tmp_path / "list").write_text("[1]")
    with pytest.raises(UserError, match=r"list: the whole: expected an object, got \[1\]; restore the file"):
        read_json(tmp_path / "list")
