"""What a task gives: a line an item, from which values, intervals and paired differences follow.

An item counts `top` out of `bottom`: 1 of 1 for a right answer, bits of bytes for a piece of text, rules kept of rules
given. A metric is sum(top) / sum(bottom); items are independent of each other, what is inside one need not be.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from openafm.evaluation.intervals import Estimate, rate, ratio
from openafm.scoring import intervals

DRAWS = 2000
"""Of the paired bootstrap."""


class NotMeasuredError(Exception):
    """Something a task needs is not here; the message says what, and how to get it."""


@dataclass(frozen=True)
class Item:
    """What one model did on one item of a task."""

    metric: str
    """Part of the task that it counts for, as `multiple` of `tools`; empty where the task has one part."""
    id: str
    """The same for every model."""
    top: float
    bottom: float = 1.0
    detail: dict[str, Any] = field(default_factory=dict)
    """For reading: what was asked, what was answered."""


def by_metric(items: Iterable[Item]) -> dict[str, list[Item]]:
    """The items of each metric, in the order they came."""
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(item.metric, []).append(item)
    return found


def estimate(items: Sequence[Item]) -> Estimate:
    """sum(top) / sum(bottom): of yes-or-no items with Wilson's interval, of others with the ratio's t interval."""
    tops = [item.top for item in items]
    if all(item.bottom == 1 and item.top in (0, 1) for item in items):
        return rate(round(sum(tops)), len(tops))
    return ratio(tops, [item.bottom for item in items])


def difference(ours: Sequence[Item], theirs: Sequence[Item], seed: int = 0) -> Estimate:
    """Ours minus theirs on the items both have, with the 95% percentile interval of the paired bootstrap.

    Both models' results of an item are drawn together (Efron and Tibshirani 1993, 8; Koehn 2004), so that what makes an
    item hard for both does not widen the interval. Raises ValueError where no item is common to both.
    """
    other = {item.id: item for item in theirs}
    pairs = [(mine, other[mine.id]) for mine in ours if mine.id in other]
    if not pairs:
        raise ValueError("no item is common to both models: measure them with the same suite")
    rows = np.array([(a.top, a.bottom, b.top, b.bottom) for a, b in pairs])

    def gap(drawn: np.ndarray) -> float:
        """Ours minus theirs on some items, `(items, 4)`: top and bottom of ours, then of theirs."""
        a, weight_a, b, weight_b = drawn.sum(0)
        return float(a / weight_a - b / weight_b)

    low, high = intervals.bootstrap(rows, gap, seed=seed, draws=DRAWS)
    return Estimate(gap(rows), low, high, len(pairs))
