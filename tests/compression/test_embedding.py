import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.compression.embedding import quantize_embedding


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(-4, 3), st.integers(0, 99))
def test_error_is_at_most_half_a_scale(rows, columns, exponent, seed):
    weight = np.random.default_rng(seed).normal(size=(rows, columns)) * 10.0**exponent
    made = quantize_embedding(weight)
    scales = made.scales.astype(np.float64)
    assert (np.abs(weight - made.dequantize()) <= scales[:, None] / 2 * (1 + 1e-6)).all()
    assert np.abs(made.values.astype(int)).max() <= 127
    normal = np.abs(weight).max(axis=1) / 127 > 1e-4
    assert (scales[normal] * 127 <= np.abs(weight).max(axis=1)[normal] * 1.002).all()


def test_silent_rows_stay_silent_and_nan_is_refused():
    assert not quantize_embedding(np.zeros((2, 3))).dequantize().any()
    with pytest.raises(ValueError, match="diverge"):
        quantize_embedding(np.array([[np.inf]]))
