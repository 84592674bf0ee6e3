from itertools import product
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.compression.allocation import allocate, average_bits

SHAPES = st.lists(st.tuples(st.sampled_from([16, 32, 48]), st.sampled_from([16, 24, 64])), min_size=1, max_size=7)


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.data(), st.floats(2.6, 6.0))
def test_least_cost_of_all_feasible_choices(shapes, data, target):
    names = {f"layer{i}": shape for i, shape in enumerate(shapes)}
    costs = {name: data.draw(st.integers(0, 1000)) / 100 for name in names}
    choices = [dict(zip(names, bits, strict=True)) for bits in product((2, 4), repeat=len(names))]
    feasible = [bits for bits in choices if average_bits(names, bits, 16) <= target]
    if not feasible:
        with pytest.raises(ValueError, match="is below"):
            allocate(names, costs, target, 16)
        return
    best = min(sum(costs[n] for n in bits if bits[n] == 2) for bits in feasible)
    found = allocate(names, costs, target, 16)
    assert average_bits(names, found, 16) <= target
    assert sum(costs[n] for n in found if found[n] == 2) == pytest.approx(best)


def test_big_models_meet_the_target_closely():
    shapes = {f"l{i}": ((3072 + 7 * (i % 5), 3072) if i % 2 else (8064, 3072)) for i in range(182)}
    bits = allocate(shapes, {name: (i * 37 % 101) / 10 for i, name in enumerate(shapes)}, 3.7, 16)
    assert 3.68 < average_bits(shapes, bits, 16) <= 3.7


def test_average_of_afm_counts_tables():
    shapes = {"q": (3072, 3072)}
    groups = 3072 // 16
    assert average_bits(shapes, {"q": 4}, 16) == pytest.approx(4 + groups * 16 * 16 / prod(shapes["q"]))


def test_harmless_layers_go_first():
    shapes = dict.fromkeys("abcd", (64, 64))
    bits = allocate(shapes, {"a": 5.0, "b": -0.1, "c": 0.2, "d": 9.0}, 3.3, 16)
    assert [name for name in bits if bits[name] == 2] == ["b", "c"]
