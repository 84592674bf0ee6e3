import math
import random

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.scoring import intervals


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 500), st.floats(0, 1))
def test_wilson_is_scipys(n, share):
    k = round(n * share)
    expected = scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
    assert intervals.wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_ends_solve_the_score_equation():
    for k, n in ((3, 20), (50, 100), (199, 200)):
        for p in intervals.wilson(k, n):
            assert abs(k / n - p) / math.sqrt(p * (1 - p) / n) == pytest.approx(intervals.Z_95)


@pytest.mark.parametrize("degrees", [1, 2, 5, 30, 500])
def test_t_quantile_is_scipys(degrees):
    assert intervals.t_quantile(degrees) == pytest.approx(scipy.stats.t.ppf(0.975, degrees), rel=1e-9)


def test_mean_is_scipys_and_covers():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        values = rng.normal(3, 2, 12)
        low, high = intervals.mean(values)
        expected = scipy.stats.t.interval(0.95, 11, values.mean(), scipy.stats.sem(values))
        assert (low, high) == pytest.approx(expected, rel=1e-9)
        covered += low <= 3 <= high
    assert 0.92 < covered / 400 < 0.98
    assert intervals.mean([1.0]) == (float("-inf"), float("inf"))


def test_bootstrap_agrees_with_t_for_a_mean_and_is_reproducible():
    values = [random.Random(1).gauss(0, 1) for _ in range(1)] + [random.Random(i).gauss(0, 1) for i in range(200)]
    assert intervals.bootstrap(values, draws=3000) == pytest.approx(intervals.mean(values), abs=0.02)
    assert intervals.bootstrap(values, seed=3) == intervals.bootstrap(values, seed=3)


def test_nothing_has_no_interval():
    for call in (lambda: intervals.wilson(0, 0), lambda: intervals.mean([]), lambda: intervals.bootstrap([])):
        with pytest.raises(ValueError):
            call()
