import sys
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.compression import palettize
from openafm.compression.palettize import CANDIDATES, ROUNDS, best_means, nearest
from openafm.engine.packed import pack, stored_bits, unpack

seeds = st.integers(0, 9999)


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


DRAWS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "laplace": lambda rng, shape: rng.laplace(size=shape),
    "uniform": lambda rng, shape: rng.uniform(size=shape),
    "heavy": lambda rng, shape: np.clip(rng.standard_t(1, size=shape), -6e4, 6e4),
    "lognormal": lambda rng, shape: np.exp(2 * rng.normal(size=shape)) * rng.choice([-1, 1], shape),
    "grid": lambda rng, shape: np.round(rng.normal(size=shape) * 8) / 8,
    "clusters": lambda rng, shape: rng.choice([-1.0, 1.0], shape) + 0.01 * rng.normal(size=shape),
    "loud": lambda rng, shape: rng.normal(size=shape) * np.where(np.arange(shape[1]) % 9, 1.0, 1000.0),
    "constant": lambda rng, shape: np.full(shape, rng.normal()),
}
draws = st.sampled_from(sorted(DRAWS))


def weighed(rng, columns, spread):
    return np.exp(spread * rng.normal(size=columns)) if spread else np.ones(columns)


def reached(weight, importance, k):
    """Squared error of the means in double precision, before tables are rounded, by the definition of nearest."""
    values = np.ascontiguousarray(weight, np.float32).reshape(1, -1)
    weights = np.tile(importance, len(weight))[None]
    means = best_means(values, weights, k, max(CANDIDATES, 64 * k), ROUNDS)[0]
    return float((weights[0] * np.square(values[0, :, None].astype(np.float64) - means).min(axis=1)).sum())


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_tiny_groups_reach_the_optimum_of_all_cuts(data):
    rows, columns = data.draw(st.integers(1, 3)), data.draw(st.integers(2, 4))
    values = data.draw(st.lists(st.integers(-512, 512), min_size=rows * columns, max_size=rows * columns))
    weight = np.array(values, np.float64).reshape(rows, columns) / 64  # exact in float16
    importance = np.array(data.draw(st.lists(st.integers(1, 8), min_size=columns, max_size=columns)), np.float64)
    best = brute_force(weight.ravel(), np.tile(importance, rows), min(4, weight.size))
    assert reached(weight, importance, 4) <= best * (1 + 1e-9) + 1e-9


@settings(deadline=None, max_examples=80)
@given(draws, st.integers(1, 40), st.integers(1, 24), st.sampled_from([2, 4, 16]), st.sampled_from([0, 1, 3]), seeds)
def test_groups_up_to_the_candidates_reach_the_exact_programme(draw, rows, columns, k, spread, seed):
    rng = np.random.default_rng(seed)
    weight, importance = DRAWS[draw](rng, (rows, columns)).astype(np.float32), weighed(rng, columns, spread)
    best = quadratic_programme(weight.ravel().astype(np.float64), np.tile(importance, rows), k)
    noise = 1e-11 * float((np.square(weight.astype(np.float64)) * importance).sum())  # of the programme's own sums
    assert reached(weight, importance, k) <= best * (1 + 1e-9) + noise


@settings(deadline=None, max_examples=5)
@given(draws, st.sampled_from([4, 16]), st.sampled_from([0, 1, 3]), seeds)
def test_larger_groups_stay_within_a_thousandth_of_it(draw, k, spread, seed):
    rng = np.random.default_rng(seed)
    weight, importance = DRAWS[draw](rng, (16, 260)).astype(np.float32), weighed(rng, 260, spread)
    best = quadratic_programme(weight.ravel().astype(np.float64), np.tile(importance, 16), k)
    noise = 1e-11 * float((np.square(weight.astype(np.float64)) * importance).sum())
    assert weight.size > CANDIDATES
    assert reached(weight, importance, k) <= best * 1.001 + noise


def test_few_candidates_still_come_near():
    """What a group of 100k weights does with 4,096 candidates, at a fortieth of the size."""
    rng = np.random.default_rng(5)
    weight = rng.standard_t(3, size=2500).astype(np.float32)
    best = quadratic_programme(weight.astype(np.float64), np.ones(2500), 4)
    means = best_means(weight[None], np.ones((1, 2500)), 4, 64, ROUNDS)[0]
    assert np.square(weight[:, None].astype(np.float64) - means).min(axis=1).sum() <= best * 1.001


@settings(deadline=None, max_examples=60)
@given(draws, st.integers(1, 3), st.integers(1, 4500), st.sampled_from([2, 4, 16]), st.sampled_from([0, 1, 3]), seeds)
def test_the_native_module_computes_the_same_to_the_last_bit(draw, groups, n, k, spread, seed):
    native = pytest.importorskip("openafm.engine._native")
    rng = np.random.default_rng(seed)
    values = DRAWS[draw](rng, (groups, n)).astype(np.float32)
    weights = weighed(rng, n, spread)[None]
    candidates = int(rng.choice([16, 300, CANDIDATES]))
    means = best_means(values, weights, k, candidates, ROUNDS)
    assert native.best_means(values, weights, k, candidates, ROUNDS).tobytes() == means.tobytes()
    edges = np.sort(means, axis=1)[:, 1:]
    assert native.nearest(values, edges).tobytes() == nearest(values, edges).tobytes()


def test_batches_and_a_missing_compiler_change_no_byte(monkeypatch):
    rng = np.random.default_rng(3)
    weight, importance = rng.standard_t(4, size=(72, 40)), np.exp(rng.normal(size=(72, 40)))
    module = sys.modules[palettize.__module__]
    found = [palettize(weight, 4, 16, importance)]
    monkeypatch.setattr(module, "BATCH", 16 * 40)
    found.append(palettize(weight, 4, 16, importance))
    monkeypatch.setattr(module, "_native", None)
    found.append(palettize(weight, 4, 16, importance))
    assert len({made.tables.tobytes() + made.indices.tobytes() for made in found}) == 1


def test_tables_shared_by_columns_are_those_of_the_transposed_weight():
    weight = np.random.default_rng(4).normal(size=(48, 64)) * np.repeat([1.0, 50.0], 32)
    rows, columns = palettize(weight, 2, 32), palettize(weight.T, 2, 32)
    assert np.square(weight - columns.dequantize().T).sum() < np.square(weight - rows.dequantize()).sum()


def test_weights_of_single_values_count():
    weight, importance = np.random.default_rng(6).normal(size=(16, 32)), np.ones((16, 32))
    importance[3, 7] = 1e6
    made = palettize(weight, 1, 16, importance)
    assert abs(made.dequantize()[3, 7] - weight[3, 7]) < 1e-3


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
    assert error(np.zeros((16, 200)), palettize(np.zeros((16, 200)), 4)) == 0  # more values than candidates


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
    with pytest.raises(ValueError, match="65504"):
        palettize(np.array([[1e5]]), 4)


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
