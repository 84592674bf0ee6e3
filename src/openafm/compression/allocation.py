"""Which projections go to 2 bits: the least sensitive ones that bring the average to the target (step `compress`).

AFM (arXiv 2407.21075, section 5.1) squeezes less important layers to 2 bits for 3.5 to 3.7 bits a weight on average.
What a projection costs is measured (`openafm.compression.compress`); which to take is a knapsack, solved exactly.
"""

from collections.abc import Mapping
from math import gcd, prod

import numpy as np

from openafm.engine.packed import stored_bits

CAPACITY = 50_000  # cells of the knapsack; savings are rounded down to a unit only where their divisor is finer


def allocate(
    shapes: Mapping[str, tuple[int, int]],
    costs: Mapping[str, float],
    target_bits: float,
    group: int,
    high: int = 4,
    low: int = 2,
) -> dict[str, int]:
    """Return the bits of each projection: `high`, or `low` for the set of least total cost that meets the target.

    `costs` is the loss that each projection adds at `low` bits; `target_bits` is the average over projection weights,
    tables included. The returned average never exceeds the target; ValueError where all at `low` bits still would.
    """
    names = sorted(shapes)
    full = {name: stored_bits(shapes[name], high, group) for name in names}
    saved = [full[name] - stored_bits(shapes[name], low, group) for name in names]
    needed = sum(full.values()) - int(target_bits * sum(prod(shapes[name]) for name in names))
    if needed > sum(saved):
        floor = average_bits(shapes, dict.fromkeys(names, low), group)
        raise ValueError(f"target_bits {target_bits} is below {floor:.3f}, which all projections at {low} bits take")
    chosen = _least_cost(saved, [max(0.0, costs[name]) for name in names], needed)
    return {name: low if taken else high for name, taken in zip(names, chosen, strict=True)}


def average_bits(shapes: Mapping[str, tuple[int, int]], bits: Mapping[str, int], group: int) -> float:
    """Return bits a weight over projections, indices and tables together."""
    total = sum(stored_bits(shape, bits[name], group) for name, shape in shapes.items())
    return total / sum(prod(shape) for shape in shapes.values())


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
