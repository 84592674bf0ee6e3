import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.evaluation.intervals import rate
from openafm.evaluation.suite.items import Item, by_metric, difference, estimate


def test_yes_or_no_items_are_a_rate_with_wilsons_interval():
    items = [Item("", str(i), float(i < 3)) for i in range(10)]
    assert estimate(items) == rate(3, 10)


def test_other_items_are_a_ratio_of_sums():
    found = estimate([Item("", "a", 10.0, 4.0), Item("", "b", 2.0, 2.0)])
    assert found.value == 2.0 and found.n == 2 and found.low < 2.0 < found.high


def test_metrics_keep_their_order():
    assert list(by_metric([Item("b", "1", 1), Item("a", "2", 1), Item("b", "3", 1)])) == ["b", "a"]


def test_a_difference_is_taken_on_common_items_only_and_is_narrower_than_the_intervals():
    rng = random.Random(0)
    hard = [rng.gauss(5, 3) for _ in range(60)]
    ours = [Item("", str(i), value + 0.5 + rng.gauss(0, 0.2)) for i, value in enumerate(hard)]
    theirs = [Item("", str(i), value + rng.gauss(0, 0.2)) for i, value in enumerate(hard)]
    gap = difference([*ours, Item("", "mine alone", 100.0)], theirs)
    assert gap.n == 60 and abs(gap.value - 0.5) < 0.1 and gap.low > 0.3 and gap.high < 0.7
    alone = estimate(ours)
    assert gap.high - gap.low < (alone.high - alone.low) / 4
    with pytest.raises(ValueError, match="no item is common"):
        difference(ours, [Item("", "other", 1.0)])


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 9), st.floats(1, 9)), min_size=2, max_size=20))
def test_a_model_does_not_differ_from_itself(rows):
    items = [Item("", str(i), top, bottom) for i, (top, bottom) in enumerate(rows)]
    gap = difference(items, items)
    assert (gap.value, gap.low, gap.high) == (0.0, 0.0, 0.0)


def test_the_bootstraps_interval_covers_the_true_difference_about_as_often_as_it_says():
    rng, covered = random.Random(1), 0
    for _ in range(60):
        ours = [Item("", str(i), float(rng.random() < 0.6)) for i in range(80)]
        theirs = [Item("", str(i), float(rng.random() < 0.5)) for i in range(80)]
        gap = difference(ours, theirs)
        covered += gap.low <= 0.1 <= gap.high
    assert covered >= 52  # 57 are expected; fewer than 52 has a chance of 1%
