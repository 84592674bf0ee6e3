"""Which projections go to 2 bits: the least sensitive ones that bring the average to the target (step `compress`).

AFM (arXiv 2407.21075, section 5.1) squeezes less important layers to 2 bits for 3.5 to 3.7 bits a weight on average.
What a projection costs is measured (`openafm.compression.compress`); which to take is a knapsack, solved exactly.
"""

from collections.abc import Mapping
from math import fsum, gcd

import numpy as np

POINTS = 20  # steps of the curve of cost against bits
CAPACITY = 50_000  # cells of the knapsack; savings are rounded down to a unit only where their divisor is finer


def allocate(high: Mapping[str, int], low: Mapping[str, int], costs: Mapping[str, float], budget: int) -> set[str]:
    """Return the projections to store low: the set of least total cost with which all fit into `budget` bits.

    `high` and `low` are the bits that each projection takes one way and the other, tables included; `costs` is the loss
    that each adds when stored low. Raises ValueError where all of them stored low still exceed the budget.
    """
    names = sorted(high)
    needed, saved = sum(high.values()) - budget, [high[name] - low[name] for name in names]
    if needed > sum(saved):
        raise ValueError(f"{budget} bits are fewer than the {sum(low.values())} that the lowest precision takes")
    chosen = _least_cost(saved, [max(0.0, costs[name]) for name in names], needed)
    return {name for name, taken in zip(names, chosen, strict=True) if taken}


def curve(high: Mapping[str, int], low: Mapping[str, int], costs: Mapping[str, float]) -> list[tuple[int, float]]:
    """Return budgets in bits, from all low to all high, and the least total cost within each."""
    least, most = sum(low.values()), sum(high.values())
    found = []
    for step in range(POINTS + 1):
        budget = least + (most - least) * step // POINTS
        # fsum: a set has no order, and a sum must not depend on one
        found.append((budget, fsum(max(0.0, costs[name]) for name in allocate(high, low, costs, budget))))
    return found


def _least_cost(saved: list[int], costs: list[float], needed: int) -> list[bool]:
    """Choose the items of least total cost whose savings reach `needed`: a covering knapsack by dynamic programming.

    Savings are counted in whole units, rounded down, and the need is rounded up, so what is chosen is enough.
    """
    if needed <= 0:
        return [False] * len(saved)
    unit = max(gcd(*saved), -(-needed // CAPACITY))
    units, capacity = [s // unit for s in saved], -(-needed // unit)
    if sum(units) < capacity:
        return [True] * len(saved)  # only rounding stood against taking all
    best = np.full(capacity + 1, np.inf)  # least cost to save at least so many units
    best[0] = 0.0
    taken = np.zeros((len(saved), capacity + 1), bool)
    for item, (size, cost) in enumerate(zip(units, costs, strict=True)):
        before = np.concatenate([np.zeros(min(size, capacity + 1)), best])[: capacity + 1] + cost
        taken[item] = before < best
        best = np.minimum(best, before)
    chosen, left = [False] * len(saved), capacity
    for item in reversed(range(len(saved))):
        if left > 0 and taken[item, left]:
            chosen[item], left = True, max(0, left - units[item])
    return chosen
