"""95% intervals of what is reported: proportions (Wilson), means (Student's t), any statistic (bootstrap)."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import sqrt

import mpmath
import numpy as np

Z_95 = 1.959963984540054
"""97.5% quantile of the standard normal distribution."""


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the 95% score interval of a proportion (Wilson 1927): the p with |successes/n - p| <= z sqrt(p(1-p)/n)."""
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"a proportion needs 0 <= successes <= n and n > 0, got {successes} of {n}")
    share, z2 = successes / n, Z_95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low = 0.0 if successes == 0 else middle - half  # exactly 0 and 1 at the ends, where rounding would miss them
    return low, 1.0 if successes == n else middle + half


@lru_cache(maxsize=256)
def t_quantile(degrees: int) -> float:
    """Return the 97.5% quantile of Student's t, solved from its distribution function by bisection."""
    low, high = 0.0, 700.0
    for _ in range(60):
        t = (low + high) / 2
        tail = mpmath.betainc(degrees / 2, 0.5, 0, degrees / (degrees + t * t), regularized=True) / 2
        low, high = (t, high) if tail > 0.025 else (low, t)
    return low


def mean(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95% t interval of a mean; one value alone says nothing about spread and gives infinite ends."""
    if not len(values):
        raise ValueError("no interval for the mean of no values")
    data = np.asarray(values, dtype=np.float64)
    if len(data) == 1:
        return float("-inf"), float("inf")
    half = t_quantile(len(data) - 1) * float(data.std(ddof=1)) / sqrt(len(data))
    return float(data.mean()) - half, float(data.mean()) + half


def bootstrap(
    values: Sequence[float] | np.ndarray,
    statistic: Callable[[np.ndarray], float] = lambda rows: float(np.mean(rows)),
    *,
    seed: int = 0,
    draws: int = 1000,
) -> tuple[float, float]:
    """Return the 95% percentile bootstrap interval (Efron 1979) of `statistic` over resampled rows of `values`."""
    data = np.asarray(values, dtype=np.float64)
    if not len(data):
        raise ValueError("no interval for a statistic of no values")
    rng = np.random.default_rng(seed)
    found = [statistic(data[rng.integers(0, len(data), len(data))]) for _ in range(draws)]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)
