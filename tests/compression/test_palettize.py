from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.compression import palettize
from openafm.engine.packed import pack, stored_bits, unpack


def error(weight, made, weights=None):
    importance = np.ones(weight.shape[1]) if weights is None else weights
    return float((np.square(weight - made.dequantize().astype(np.float64)) * importance).sum())


def run_error(values, weights):
    mean = (values * weights).sum() / weights.sum()
    return float((weights * (values - mean) ** 2).sum())


def brute_force(values, weights, k):
    """Least squared error over every way to cut the sorted values into k runs."""
    order = np.argsort(values)
    values, weights = values[order], weights[order]
    best = np.inf
    for inner in combinations(range(1, len(values)), k - 1):
        cuts = [0, *inner, len(values)]
        pieces = [run_error(values[a:b], weights[a:b]) for a, b in pairwise(cuts)]
        best = min(best, sum(pieces))
    return best


def quadratic_programme(values, weights, k):
    """The textbook O(k n^2) recurrence over all positions (Wang and Song 2011, equation 1)."""
    order = np.argsort(values)
    x, w = values[order] - values.mean(), weights[order]
    mass, moment, square = (np.concatenate([[0.0], np.cumsum(w * x**p)]) for p in range(3))
    n = len(x)
    cost = np.full((n + 1, n + 1), np.inf)
    for j in range(1, n + 1):
        m = mass[j] - mass[:j]
        cost[j, :j] = square[j] - square[:j] - (moment[j] - moment[:j]) ** 2 / m
    best = cost[:, 0]
    for _ in range(k - 1):
        best = np.minimum(best, (cost + best).min(axis=1))
    return best[-1]


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_small_groups_reach_the_optimum(data):
    rows, columns = data.draw(st.integers(1, 3)), data.draw(st.integers(2, 4))
    values = data.draw(st.lists(st.integers(-512, 512), min_size=rows * columns, max_size=rows * columns))
    weight = np.array(values, np.float64).reshape(rows, columns) / 64  # exact in float16
    importance = np.array(data.draw(st.lists(st.integers(1, 8), min_size=columns, max_size=columns)), np.float64)
    made = palettize(weight, 2, rows, importance)
    distinct = len(np.unique(weight))
    best = brute_force(weight.ravel(), np.tile(importance, rows), min(4, distinct))
    tables_rounded = 12 * importance.max() * (np.abs(weight).max() * 2.0**-11) ** 2 + 1e-6 * best
    assert error(weight, made, importance) <= best * (1 + 1e-3) + 2 * tables_rounded + 1e-9


@pytest.mark.parametrize("draw", ["normal", "laplace", "uniform", "heavy", "grid"])
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_within_a_thousandth_of_the_exact_programme(draw, bits, weighted):
    rng = np.random.default_rng([bits, weighted])
    weight = {
        "normal": lambda: rng.normal(size=(32, 72)),
        "laplace": lambda: rng.laplace(size=(32, 72)),
        "uniform": lambda: rng.uniform(size=(32, 72)),
        "heavy": lambda: rng.standard_t(2, size=(32, 72)),
        "grid": lambda: np.round(rng.normal(size=(32, 72)) * 8) / 8,
    }[draw]()
    importance = np.exp(2 * rng.normal(size=72)) if weighted else np.ones(72)
    made = palettize(weight, bits, 16, importance if weighted else None)
    for group in range(2):
        rows = slice(16 * group, 16 * group + 16)
        best = quadratic_programme(weight[rows].ravel(), np.tile(importance, 16), 2**bits)
        ours = float((np.square(weight - made.dequantize())[rows] * importance).sum())
        assert ours <= best * 1.001 + 1e-5 * importance.sum()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 9), st.sampled_from([1, 4, 16]), st.sampled_from([2, 4]), st.integers(0, 99))
def test_shapes_ranges_and_last_groups(rows, columns, group, bits, seed):
    weight = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    made = palettize(weight, bits, group)
    assert made.indices.shape == weight.shape and made.indices.max() < 2**bits
    assert made.tables.shape == (-(-rows // group), 2**bits)
    assert made.dequantize().shape == weight.shape
    # every weight takes the nearest value of its own group's table
    tables = np.repeat(made.tables.astype(np.float64), group, axis=0)[:rows]
    nearest = np.abs(weight[:, :, None] - tables[:, None, :]).min(axis=2)
    np.testing.assert_allclose(np.abs(weight - made.dequantize()), nearest, atol=1e-6)


def test_groups_do_not_depend_on_each_other():
    weight = np.random.default_rng(0).normal(size=(64, 40))
    whole, part = palettize(weight, 4, 16), palettize(weight[16:32], 4, 16)
    np.testing.assert_array_equal(whole.tables[1:2], part.tables)


def test_constant_and_few_values_are_kept_exactly():
    assert error(np.full((16, 8), 0.25), palettize(np.full((16, 8), 0.25), 4)) == 0
    few = np.random.default_rng(0).choice([-1.0, 0.5, 2.0], size=(16, 200))
    assert error(few, palettize(few, 2)) == 0


def test_a_loud_column_is_served_first():
    rng = np.random.default_rng(1)
    weight, importance = rng.normal(size=(16, 64)), np.ones(64)
    importance[5] = 1e4
    plain, weighted = palettize(weight, 2), palettize(weight, 2, weights=importance)
    assert error(weight, weighted, importance) < error(weight, plain, importance) / 2


def test_refuses_what_it_cannot_pack():
    with pytest.raises(ValueError, match="choose 1, 2, 4 or 8"):
        palettize(np.ones((4, 4)), 3)
    with pytest.raises(ValueError, match="NaN"):
        palettize(np.array([[np.nan]]), 4)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 5), st.integers(1, 21), st.sampled_from([1, 2, 4, 8]), st.integers(0, 99))
def test_packing_is_little_endian_and_comes_back(rows, columns, bits, seed):
    indices = np.random.default_rng(seed).integers(0, 2**bits, size=(rows, columns)).astype(np.uint8)
    packed = pack(indices, bits)
    numbers = [sum(int(v) << (bits * i) for i, v in enumerate(row)) for row in indices]
    width = -(-columns * bits // 8)
    assert packed.tobytes() == b"".join(number.to_bytes(width, "little") for number in numbers)
    np.testing.assert_array_equal(unpack(packed, bits, columns), indices)


def test_bits_are_counted_with_tables():
    made = palettize(np.random.default_rng(0).normal(size=(40, 10)), 4, 16)
    assert made.storage_bits == 400 * 4 + made.tables.size * 16 == stored_bits((40, 10), 4, 16)
