"""Error feedback against definitions written another way: GPTQ's update by re-solving, least squares on outputs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.compression import feedback
from openafm.compression.calibration import Reading
from openafm.compression.feedback import (
    CORRECTION,
    corrected,
    damped,
    eliminate,
    feed_back,
    fit_tables,
    on_byte_grid,
    output_error,
    palettize_with_feedback,
)
from openafm.compression.palettize import palettize
from openafm.engine.packed import Palettized


def problem(seed, rows=32, columns=24, tokens=200, loud=1.0):
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(columns, columns)) / columns**0.5
    x = rng.normal(size=(tokens, columns)) @ (mixed + 0.5 * np.eye(columns))
    x[:, 0] *= loud
    weight = torch.from_numpy(rng.standard_t(5, size=(rows, columns)).astype(np.float32))
    inputs = torch.from_numpy(x.astype(np.float32))
    return weight, inputs, inputs.T @ inputs / tokens


def test_the_output_error_is_that_of_the_outputs():
    weight, x, gram = problem(0)
    made = palettize(weight.numpy(), 2, 16)
    lost = x @ (weight - torch.from_numpy(made.dequantize())).T
    expected = (lost.square().sum() / (x @ weight.T).square().sum()).item()
    assert output_error(weight, made, gram) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("block", [5, 128])
def test_each_column_is_made_up_for_by_the_best_change_of_the_later_ones(block, monkeypatch):
    """Greedily: fix a column at its nearest value, then re-solve for all columns left by least squares."""
    monkeypatch.setattr(feedback, "BLOCK", block)
    weight, _, gram = problem(1, rows=16, columns=12)
    elimination, tables = eliminate(gram), torch.tensor([[-1.5, -0.5, 0.5, 1.5]])
    found, _ = feed_back(weight, elimination, tables, 16)
    g, order = damped(gram), elimination.order.tolist()
    assert sorted(gram.diagonal()[order].tolist(), reverse=True) == gram.diagonal()[order].tolist()
    expected = torch.empty_like(found)
    for row, target in enumerate(weight.double()):
        values = target.clone()
        for place, column in enumerate(order):
            expected[row, column] = (tables[0] - values[column]).abs().argmin()
            values[column] = tables[0][expected[row, column]]
            fixed, left = order[: place + 1], order[place + 1 :]
            # minimise (target - values) G (target - values)^T over the columns left
            pull = g[left][:, fixed] @ (target - values)[fixed]
            values[left] = target[left] + torch.linalg.solve(g[left][:, left], pull)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("bits", "group"), [(2, 16), (2, 5), (1, 32), (4, 16)])
def test_fitted_tables_are_least_squares_on_the_outputs(bits, group, monkeypatch):
    monkeypatch.setattr(feedback, "ONE_HOT", 1000)  # some rows at a time
    weight, x, gram = problem(2)
    made = palettize(weight.numpy(), bits, group)
    indices = torch.from_numpy(made.indices.astype(np.int64))
    tables = fit_tables(weight, gram, indices, bits, group)
    for number, table in enumerate(tables):
        rows = slice(number * group, (number + 1) * group)
        design = torch.cat([x @ torch.nn.functional.one_hot(i, 2**bits).float() for i in indices[rows]]).double()
        used = design.abs().sum(0) > 0
        expected = torch.linalg.lstsq(design[:, used], (weight[rows] @ x.T).reshape(-1, 1).double()).solution[:, 0]
        error = (design[:, used] @ table[used].double() - (weight[rows] @ x.T).reshape(-1)).square().sum()
        best = (design[:, used] @ expected - (weight[rows] @ x.T).reshape(-1)).square().sum()
        assert error <= best * 1.01 + 1e-3
        assert (table.diff() >= 0).all()


@given(seed=st.integers(0, 10**6), bits=st.sampled_from([1, 2, 4]), group=st.sampled_from([1, 7, 16, 64]),
       loud=st.sampled_from([1.0, 1000.0]))  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_feedback_never_loses_to_plain_tables(seed, bits, group, loud):
    weight, _, gram = problem(seed, rows=24, loud=loud)
    made = palettize_with_feedback(weight, eliminate(gram), bits, group)
    plain = on_byte_grid(palettize(weight.numpy(), bits, group, gram.diagonal().numpy()))
    assert output_error(weight, made, gram) <= output_error(weight, plain, gram)
    assert made.indices.shape == weight.shape and made.tables.shape == plain.tables.shape
    assert (np.diff(made.tables.astype(np.float32), axis=1) >= 0).all()


def test_feedback_halves_the_error_where_inputs_go_together():
    weight, _, gram = problem(3, rows=64, columns=48)
    fed = output_error(weight, palettize_with_feedback(weight, eliminate(gram), 4), gram)
    assert fed < 0.7 * output_error(weight, palettize(weight.numpy(), 4, 16, gram.diagonal().numpy()), gram)


@pytest.mark.parametrize("bits", [2, 4])
def test_the_byte_grid_is_the_best_of_all_scales(bits):
    """Against every scale of a fine ladder, and in multiples that an int8 holds."""
    weight, _, _ = problem(8)
    plain = palettize(weight.numpy(), bits, 16)
    made = on_byte_grid(plain)
    for number, (before, after) in enumerate(zip(plain.tables.astype(float), made.tables.astype(float), strict=True)):
        uses = np.bincount(plain.indices[16 * number : 16 * number + 16].ravel(), minlength=2**bits)
        largest = np.abs(before).max()
        scale = min(largest / np.arange(64, 128), key=lambda s: (uses * (s * np.rint(before / s) - before) ** 2).sum())
        np.testing.assert_allclose(after, scale * np.rint(before / scale), rtol=1e-3)
        assert np.abs(np.rint(after / scale)).max() <= 127
    np.testing.assert_array_equal(on_byte_grid(made).tables, made.tables)


def test_what_lies_on_a_table_already_stays():
    rng = np.random.default_rng(4)
    tables = np.sort(rng.integers(-127, 128, (2, 4)), axis=1).astype(np.float16) / 64
    exact = Palettized(rng.integers(0, 4, (32, 20)).astype(np.uint8), tables, 2, 16)
    _, _, gram = problem(5, columns=20)
    made = palettize_with_feedback(torch.from_numpy(exact.dequantize()), eliminate(gram), 2)
    np.testing.assert_array_equal(made.dequantize(), exact.dequantize())


def test_a_corrected_weight_is_ridge_regression_on_the_targets():
    weight, x, _ = problem(7, tokens=400)
    changed = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    lack = torch.randn(len(x), len(weight), generator=torch.Generator().manual_seed(1))
    gram = changed.T @ changed / len(x)
    reading = Reading(("p",), gram, (x - changed).T @ changed / len(x), lack.T @ changed / len(x))
    # rows of sqrt(n lambda) I pull each weight towards where it was
    strength = (len(x) * CORRECTION * gram.diagonal().mean()).sqrt()
    design = torch.cat([changed, strength * torch.eye(x.shape[1])]).double()
    targets = torch.cat([lack + x @ weight.T, strength * weight.T]).double()
    expected = torch.linalg.lstsq(design, targets).solution.T
    torch.testing.assert_close(corrected(weight, reading).double(), expected, rtol=1e-3, atol=1e-4)
    same = Reading(("p",), gram, torch.zeros_like(gram), None)
    assert torch.equal(corrected(weight, same), weight)


def test_silent_inputs_do_no_harm():
    weight, _, gram = problem(6)
    gram[3], gram[:, 3] = 0, 0
    for matrix in (gram, torch.zeros_like(gram)):
        assert np.isfinite(palettize_with_feedback(weight, eliminate(matrix), 2).dequantize()).all()
