from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.compression.allocation import allocate, curve
from openafm.engine.packed import stored_bits

SHAPES = st.lists(st.tuples(st.sampled_from([16, 32, 48]), st.sampled_from([16, 24, 64])), min_size=1, max_size=7)


def sizes(shapes):
    return tuple({name: stored_bits(shape, bits, 16) for name, shape in shapes.items()} for bits in (4, 2))


def total(high, low, chosen):
    return sum(low[name] if name in chosen else high[name] for name in high)


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.data(), st.floats(0.3, 1.1))
def test_least_cost_of_all_feasible_choices(shapes, data, share):
    names = {f"layer{i}": shape for i, shape in enumerate(shapes)}
    high, low = sizes(names)
    costs = {name: data.draw(st.integers(0, 1000)) / 100 for name in names}
    budget = int(share * sum(high.values()))
    choices = [set(chosen) for size in range(len(names) + 1) for chosen in combinations(names, size)]
    feasible = [chosen for chosen in choices if total(high, low, chosen) <= budget]
    if not feasible:
        with pytest.raises(ValueError, match="fewer than"):
            allocate(high, low, costs, budget)
        return
    found = allocate(high, low, costs, budget)
    assert total(high, low, found) <= budget
    best = min(sum(costs[name] for name in chosen) for chosen in feasible)
    assert sum(costs[name] for name in found) == pytest.approx(best)


def test_big_models_meet_the_budget_closely():
    shapes = {f"l{i}": ((3072 + 7 * (i % 5), 3072) if i % 2 else (8064, 3072)) for i in range(182)}
    (high, low), weights = sizes(shapes), sum(rows * columns for rows, columns in shapes.values())
    found = allocate(high, low, {name: (i * 37 % 101) / 10 for i, name in enumerate(shapes)}, int(3.7 * weights))
    assert 3.68 < total(high, low, found) / weights <= 3.7


def test_harmless_layers_go_first():
    high, low = sizes(dict.fromkeys("abcd", (64, 64)))
    assert allocate(high, low, {"a": 5.0, "b": -0.1, "c": 0.2, "d": 9.0}, int(3.3 * 4 * 64 * 64)) == {"b", "c"}


def test_the_curve_falls_from_all_low_to_none():
    high, low = sizes({f"l{i}": (64, 16 * (i + 1)) for i in range(6)})
    costs = {name: 0.1 * i - 0.05 for i, name in enumerate(high)}
    found = curve(high, low, costs)
    assert found[0] == (sum(low.values()), pytest.approx(0.05 + 0.15 + 0.25 + 0.35 + 0.45)) and found[-1][1] == 0
    assert found[-1][0] == sum(high.values()) and all(a[1] >= b[1] for a, b in pairwise(found))
