"""Palettization: every 16 rows of a projection share one look-up table, found by one-dimensional k-means.

Used by the step `compress`; `openafm bench palettize` compares it with peers. K-means on a line has an optimum that
dynamic programming finds: sorted values are cut into k runs (Wang and Song, The R Journal 3/2, 2011), and the best
start of a run grows with its end, which divides and conquers the search (Grønlund et al., arXiv 1701.07204, section
2.3). Groups of up to `CANDIDATES` values are solved exactly so. In larger ones cuts are chosen among that many
positions, and Lloyd's steps end it: a cut that had to move to the next position costs at most twice the distance of
its two table values, times the distance it moved, times the weight it moved over, so that the excess falls with
(k / CANDIDATES)^2. Measured it is below 0.01% (docs/compression.md). Memory is O(values).

The native module (native/palettize.cpp) computes the same in the same order, to the last bit.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from openafm.engine.packed import Palettized

try:
    from openafm.engine import _native
except ImportError:  # no compiler where openafm was installed
    _native = None  # type: ignore[assignment,unused-ignore]

Array = NDArray[np.float64]
Cuts = NDArray[np.intp]
CANDIDATES = 4096
"""Positions that cuts are chosen among, at least; 64 for each table value where that is more."""
ROUNDS = 10
"""Most of Lloyd's steps."""
BATCH = 1 << 20
"""Values that are worked on at once: bounds the memory."""
LARGEST = float(np.finfo(np.float16).max)


def palettize(
    weight: NDArray[np.floating],
    bits: int,
    group: int = 16,
    weights: NDArray[np.floating] | None = None,
) -> Palettized:
    """Return `weight` `(rows, columns)` with one table of 2**bits values for every `group` rows.

    `weights` `(columns,)` or `(rows, columns)` weighs squared errors, e.g. by the second moment of a column's input
    activation or by Fisher information: a few input channels that are a thousand times louder than the mean would
    otherwise ruin the layer. Tables shared by columns are those of `weight.T`; packages hold tables of rows.
    Raises ValueError for weights that no table of float16 can hold, or a number of bits other than 1, 2, 4 and 8.
    """
    if bits not in (1, 2, 4, 8):
        raise ValueError(f"{bits} bits cannot be packed: choose 1, 2, 4 or 8")
    if not (np.abs(weight) <= LARGEST).all():
        raise ValueError(
            f"weights hold NaN, infinity or values beyond {LARGEST:.0f}, the largest of a table's float16: palettize a "
            "checkpoint whose training did not diverge"
        )
    rows, columns = weight.shape
    importance = _importance(weights, columns)
    indices = np.empty((rows, columns), np.uint8)
    tables = np.empty((-(-rows // group), 2**bits), np.float16)

    for first, last in _batches(rows, columns, group):
        height = min(group, last - first)
        values = np.ascontiguousarray(weight[first:last], np.float32).reshape(-1, height * columns)
        own = np.tile(importance, (height, 1)) if len(importance) == 1 else importance[first:last]
        table, index = palettize_groups(values, own.reshape(-1, height * columns), 2**bits)
        tables[first // group : -(-last // group)] = table
        indices[first:last] = index.reshape(-1, columns)
    return Palettized(indices, tables, bits, group)


def _importance(weights: NDArray[np.floating] | None, columns: int) -> Array:
    """Return positive weights with mean 1, `(1 or rows, columns)`: silent channels keep a little, no run weighs 0."""
    if weights is None or not np.any(weights):
        return np.ones((1, columns))
    scaled = np.asarray(weights, np.float64) / np.mean(weights, dtype=np.float64)
    return np.atleast_2d(scaled + 1e-6)


def _batches(rows: int, columns: int, group: int) -> Iterator[tuple[int, int]]:
    """Cut the rows into runs of whole groups that fit in memory; a last, smaller group stands alone."""
    whole = rows - rows % group
    step = max(1, BATCH // (group * columns)) * group
    for first in range(0, whole, step):
        yield first, min(first + step, whole)
    if whole < rows:
        yield whole, rows


def palettize_groups(
    values: NDArray[np.float32], weights: Array, k: int
) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Return tables `(groups, k)` and indices `(groups, n)` of `values` `(groups, n)`.

    `weights` are positive, `(groups, n)`, or `(1, n)` for all groups.
    """
    candidates = max(CANDIDATES, 64 * k)
    solve, find = (best_means, nearest) if _native is None else (_native.best_means, _native.nearest)
    means = solve(values, weights, k, candidates, ROUNDS)
    tables = np.sort(means, axis=1).astype(np.float16)
    wide = tables.astype(np.float64)
    return tables, find(values, (wide[:, 1:] + wide[:, :-1]) / 2)


def best_means(values: NDArray[np.float32], weights: Array, k: int, candidates: int, rounds: int) -> Array:
    """Return the means `(groups, k)` of the k runs that the sorted values are best cut into."""
    plain = values + np.float32(0)  # no minus zero
    order = np.argsort(plain, axis=1, kind="stable")
    ordered = np.take_along_axis(plain, order, axis=1).astype(np.float64)
    centre = ordered[:, ordered.shape[1] // 2, None].copy()
    ordered -= centre  # sums of centred values lose no digits
    weight = np.take_along_axis(np.broadcast_to(weights, values.shape), order, axis=1)
    sums = np.zeros((2, len(values), values.shape[1] + 1))
    np.cumsum(weight, axis=1, out=sums[0, :, 1:])
    np.cumsum(weight * ordered, axis=1, out=sums[1, :, 1:])
    at = _positions(ordered, weight, candidates)
    mass, moment = np.take_along_axis(sums, at[None], 2)
    cuts = np.take_along_axis(at, _programme(mass, moment, k), 1)
    return _lloyd(ordered, sums, cuts, rounds) + centre


def _positions(ordered: Array, weight: Array, count: int) -> Cuts:
    """Place cuts, `(groups, count + 1)` from 0 to n: half follow the count of values, half the root of their density.

    The density of an ideal quantiser's levels is its cube root (Panter and Dite, 1951), a value's is its weight over
    its gap. The fourth root, which square roots make, gives the tails a little more, and is the same on any machine.
    """
    groups, n = ordered.shape
    if n <= count:
        return np.broadcast_to(np.arange(n + 1), (groups, n + 1))
    gaps = np.diff(ordered, axis=1)
    measure = np.zeros((groups, n + 1))
    np.cumsum(np.sqrt(gaps * np.sqrt(gaps * weight[:, 1:])), axis=1, out=measure[:, 1:-1])
    measure[:, -1] = measure[:, -2]
    measure = measure / np.maximum(measure[:, -1:], 1e-300) + np.arange(n + 1) / n
    targets = np.arange(2, 2 * count, 2) / count
    found = np.full((groups, count + 1), n)
    found[:, 0] = 0
    for line, cuts in zip(measure, found, strict=True):
        np.minimum(np.searchsorted(line, targets), n, out=cuts[1:-1])
    return found


def _gain(mass: Array, moment: Array) -> Array:
    """Return moment^2 / mass, by which a run's squared error is less than its raw second moment."""
    return np.divide(moment * moment, mass, out=np.zeros_like(mass), where=mass > 0)


def _programme(mass: Array, moment: Array, k: int) -> Cuts:
    """Return the best k runs `(groups, k + 1)` between positions 0 to p with these sums `(groups, p + 1)`."""
    groups, p = mass.shape[0], mass.shape[1] - 1
    best, starts = _gain(mass - mass[:, :1], moment - moment[:, :1]), []
    for _ in range(k - 2):
        best, start = _layer(mass, moment, best)
        starts.append(start)
    last = (_gain(mass[:, -1:] - mass, moment[:, -1:] - moment) + best).argmax(axis=1)
    path = [np.full(groups, p), last]
    for start in reversed(starts):
        path.append(start[np.arange(groups), path[-1]])
    return np.stack([*path, np.zeros(groups, np.intp)][::-1], axis=1)


def _layer(mass: Array, moment: Array, before: Array) -> tuple[Array, Cuts]:
    """Return the best value of one more run that ends at each position, and where it starts, `(groups, p + 1)` each.

    Best starts grow with the end. So those of odd multiples of a stride lie between their neighbours' at twice the
    stride, and each stride costs O(p): all searches of one stride, in all groups, are one flat array.
    """
    groups, p = mass.shape[0], mass.shape[1] - 1
    best, start = np.zeros_like(mass), np.zeros(mass.shape, np.intp)
    best[:, 0] = before[:, 0]
    stride = 1 << (p.bit_length() - 1)
    while stride:
        ends = np.arange(stride, p + 1, 2 * stride)
        high = np.broadcast_to(ends, (groups, len(ends))).copy()
        inner = ends + stride <= p
        high[:, inner] = np.minimum(high[:, inner], start[:, ends[inner] + stride])
        low = start[:, ends - stride].ravel()
        lengths = high.ravel() - low + 1
        first = np.cumsum(lengths) - lengths  # of each search in the flat array
        search = np.repeat(np.arange(lengths.size), lengths)
        row, end = search // len(ends), ends[search % len(ends)]
        tried = np.arange(search.size) - (first - low)[search]
        value = _gain(mass[row, end] - mass[row, tried], moment[row, end] - moment[row, tried]) + before[row, tried]
        found = np.maximum.reduceat(value, first)
        best[:, ends] = found.reshape(groups, -1)
        equal = np.where(value == found[search], tried, p + 1)
        start[:, ends] = np.minimum.reduceat(equal, first).reshape(groups, -1)
        stride //= 2
    return best, start


def _lloyd(ordered: Array, sums: Array, cuts: Cuts, rounds: int) -> Array:
    """Return the runs' means `(groups, k)` after Lloyd's steps: cuts go midway between means until none moves."""
    for done in range(rounds + 1):
        mass, moment = np.diff(np.take_along_axis(sums, cuts[None], 2), axis=2)
        filled = mass > 0
        means: Array = np.divide(moment, mass, out=np.zeros_like(mass), where=filled)
        before = np.maximum.accumulate(np.where(filled, np.arange(mass.shape[1]), 0), axis=1)
        means = np.take_along_axis(means, np.maximum(before, filled.argmax(axis=1)[:, None]), axis=1)
        if done == rounds:
            break
        moved = cuts.copy()
        for line, edges, cut in zip(ordered, (means[:, 1:] + means[:, :-1]) / 2, moved, strict=True):
            cut[1:-1] = np.searchsorted(line, edges)
        if np.array_equal(moved, cuts):
            break
        cuts = moved
    return means


def nearest(values: NDArray[np.float32], edges: Array) -> NDArray[np.uint8]:
    """Return how many of its group's `edges` `(groups, k - 1)` are at most each value: its place in the table."""
    found = np.empty(values.shape, np.uint8)
    for line, own, index in zip(values, edges, found, strict=True):
        index[:] = np.searchsorted(own, line.astype(np.float64), side="right")
    return found
