"""Momentum: the ends and the middle of each schedule are those of the closed forms."""

import math

import pytest

from mimkit.core.errors import UserError
from mimkit.methods.momentum import Momentum


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.5, 0.999, 1.0])
def test_half_a_cosine_is_the_released_rule(progress):
    """facebookresearch/dino:utils.py, cosine_scheduler."""
    expected = 1.0 + 0.5 * (0.996 - 1.0) * (1 + math.cos(math.pi * progress))
    assert Momentum().at(progress) == pytest.approx(expected, abs=1e-15)


def test_a_line_that_is_longer_than_training():
    momentum = Momentum(first=0.996, last=1.0, shape="linear", stretch=1.25)
    assert momentum.at(0.0) == 0.996
    assert momentum.at(1.0) == pytest.approx(0.9992)  # MSN's, as its code ends
    assert Momentum(first=0.5, shape="linear", stretch=0.5).at(0.75) == 1.0


def test_capi_begins_with_a_teacher_that_stays():
    momentum = Momentum(first=0.999, last=0.9999, warmup=0.1)
    assert momentum.at(0.0) == 1.0
    assert momentum.at(0.05) == pytest.approx(0.9995)
    assert momentum.at(0.1) == pytest.approx(0.999)
    assert momentum.at(1.0) == pytest.approx(0.9999)


def test_a_constant_stays():
    assert {Momentum(first=0.9998, shape="constant").at(progress / 7) for progress in range(8)} == {0.9998}


@pytest.mark.parametrize("settings", [{"first": 1.5}, {"last": -0.1}, {"stretch": 0.0}, {"warmup": 1.0}])
def test_what_cannot_be_meant_is_refused(settings):
    with pytest.raises(UserError, match="momentum"):
        Momentum(**settings).check()
