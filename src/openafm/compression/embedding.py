"""The embedding in int8 with one scale a channel (AFM, arXiv 2407.21075, section 5.1; step `compress`).

Input and output share the matrix, and the output's channels are the vocabulary's rows: each token has its scale.
"""

import numpy as np
from numpy.typing import NDArray

from openafm.engine.packed import Int8Rows

SMALLEST = np.finfo(np.float16).tiny


def quantize_embedding(weight: NDArray[np.floating]) -> Int8Rows:
    """Return `weight` `(vocab, d_model)` as round(weight / scale), scale = the row's largest magnitude / 127.

    An error is at most half a scale. Raises ValueError where a row does not fit float16 scales.
    """
    largest = np.abs(weight.astype(np.float64)).max(axis=1)
    if not np.isfinite(largest).all() or largest.max() > 127 * 65000:
        raise ValueError("the embedding holds NaN, infinity or huge values: compress a checkpoint that did not diverge")
    scales = np.maximum(largest / 127, SMALLEST).astype(np.float16)
    # A scale that float16 rounded down would push the largest value past 127.
    scales = np.where(scales.astype(np.float64) * 127 < largest, np.nextafter(scales, np.float16(np.inf)), scales)
    values = np.rint(weight / scales.astype(np.float64)[:, None]).clip(-127, 127)
    return Int8Rows(values.astype(np.int8), scales.astype(np.float16))
