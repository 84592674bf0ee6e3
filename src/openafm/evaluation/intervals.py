"""Estimates with their 95% intervals: rates over answers, ratios over windows of text, paired differences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from openafm.scoring import intervals


@dataclass(frozen=True)
class Estimate:
    """A measured value, its 95% interval (None where n is too small to tell), and the n it rests on."""

    value: float
    low: float | None
    high: float | None
    n: int


def rate(passed: int, n: int) -> Estimate:
    """Share of `passed` among `n` independent trials, with Wilson's interval. Raises ValueError for n < 1."""
    low, high = intervals.wilson(passed, n)
    return Estimate(passed / n, low, high, n)


def ratio(tops: Sequence[float], bottoms: Sequence[float]) -> Estimate:
    """sum(tops) / sum(bottoms), one pair a window, with the t interval of the linearised ratio (Cochran 1977, 2.11).

    Tokens of one window depend on each other, windows hardly: so the window is the unit, and n counts windows.
    """
    n, total = len(tops), sum(bottoms)
    if not total:
        raise ValueError("the held-out text is empty: nothing to measure on")
    value = sum(tops) / total
    if n < 2:
        return Estimate(value, None, None, n)
    spread = sum((top - value * bottom) ** 2 for top, bottom in zip(tops, bottoms, strict=True))
    half = intervals.t_quantile(n - 1) * math.sqrt(n / (n - 1) * spread) / total
    return Estimate(value, value - half, value + half, n)


def paired(first: Sequence[float], second: Sequence[float], bottoms: Sequence[float]) -> Estimate:
    """Difference first - second of two ratios over the same windows; narrower than the two intervals suggest."""
    return ratio([a - b for a, b in zip(first, second, strict=True)], bottoms)
