import math
import random

import numpy as np
import pytest

from openafm.evaluation.intervals import paired, rate, ratio


def test_rate_solves_wilsons_equation():
    found = rate(7, 20)
    for end in (found.low, found.high):
        assert abs(found.value - end) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / 20))


def test_ratio_of_equal_bottoms_is_the_t_interval_of_a_mean():
    tops = [3.0, 5.0, 4.0, 7.0, 6.0]
    found = ratio(tops, [2.0] * 5)
    mean, half = np.mean(tops) / 2, 2.7764451 * np.std(tops, ddof=1) / math.sqrt(5) / 2
    assert (found.value, found.low, found.high) == pytest.approx((mean, mean - half, mean + half))


def test_ratio_covers_the_truth_about_95_times_in_100():
    rng = random.Random(0)
    hits = 0
    for _ in range(1000):
        bottoms = [rng.uniform(200, 400) for _ in range(30)]
        tops = [0.4 * b + rng.gauss(0, 12) for b in bottoms]
        found = ratio(tops, bottoms)
        hits += found.low <= 0.4 <= found.high
    assert 930 <= hits <= 970


def test_one_window_has_no_interval_and_none_is_an_error():
    assert ratio([1.0], [2.0]).low is None
    with pytest.raises(ValueError, match="held-out text is empty"):
        ratio([], [])


def test_pairing_narrows_the_difference():
    hard = [random.Random(i).uniform(100, 200) for i in range(20)]
    easier = [h - 5 + 0.1 * i for i, h in enumerate(hard)]
    difference, alone = paired(hard, easier, [100] * 20), ratio(hard, [100] * 20)
    assert difference.low > 0
    assert difference.high - difference.low < 0.1 * (alone.high - alone.low)
