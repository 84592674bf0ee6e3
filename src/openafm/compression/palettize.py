"""Palettization: every 16 rows of a projection share one look-up table, found by one-dimensional k-means.

Used by the step `compress`; `python benchmarks/palettize.py` compares it with peers. K-means on a line has an optimum
that dynamic programming finds (Wang and Song, The R Journal 3/2, 2011): sorted values are cut into k runs. Small groups
are solved exactly so. In others the cuts are first restricted to a few hundred candidates, placed as a good quantiser's
levels lie; dynamic programmes over ever finer windows around the cuts then come down to single values, and Lloyd's
steps end it. Memory is O(values), and work is shared by all groups in numpy.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from openafm.engine.packed import Palettized

Array = NDArray[np.float64]
Cuts = NDArray[np.intp]
CANDIDATES = 256  # cut positions of the first programme: 16 for each of 16 clusters
EXACT = 512  # groups of so few values are solved over all positions
STEPS = 20  # positions on each side of a cut in the finer programmes
SHRINK = 4  # how much finer each next one is
BATCH_CELLS = 1 << 20  # cells of the first programme's matrices at once: bounds the memory, and fits caches


def palettize(
    weight: NDArray[np.floating], bits: int, group: int = 16, weights: NDArray[np.floating] | None = None
) -> Palettized:
    """Return `weight` `(rows, columns)` with one table of 2**bits values for every `group` rows.

    `weights` `(columns,)` weighs each column's squared error, e.g. by the second moment of its input activation: a few
    input channels that are a thousand times louder than the mean would otherwise ruin the layer.
    Raises ValueError for weights that are not finite or a number of bits other than 1, 2, 4 and 8.
    """
    if bits not in (1, 2, 4, 8):
        raise ValueError(f"{bits} bits cannot be packed: choose 1, 2, 4 or 8")
    if not np.isfinite(weight).all():
        raise ValueError("weights hold NaN or infinity: palettize a checkpoint whose training did not diverge")
    rows, columns = weight.shape
    importance = _importance(weights, columns)
    indices = np.empty((rows, columns), np.uint8)
    tables = np.empty((-(-rows // group), 2**bits), np.float16)
    for first, last in _batches(rows, columns, group):
        values = weight[first:last].astype(np.float64).reshape(-(-(last - first) // group), -1)
        table, index = _palettize_groups(values, np.tile(importance, values.shape[1] // columns), 2**bits)
        tables[first // group : -(-last // group)] = table
        indices[first:last] = index.reshape(-1, columns)
    return Palettized(indices, tables, bits, group)


def _importance(weights: NDArray[np.floating] | None, columns: int) -> Array:
    """Return positive column weights with mean 1: silent channels keep a little, so that no cluster weighs nothing."""
    if weights is None or not np.any(weights):
        return np.ones(columns)
    scaled = np.asarray(weights, np.float64) / np.mean(weights)
    return scaled + 1e-6


def _batches(rows: int, columns: int, group: int) -> Iterator[tuple[int, int]]:
    """Cut the rows into runs of whole groups that fit in memory; a last, smaller group stands alone."""
    whole = rows - rows % group
    step = max(1, BATCH_CELLS // max(group * columns, EXACT**2 // 4)) * group
    for first in range(0, whole, step):
        yield first, min(first + step, whole)
    if whole < rows:
        yield whole, rows


def _palettize_groups(values: Array, importance: Array, k: int) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Return tables `(groups, k)` and indices `(groups, n)` of `values` `(groups, n)`."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    centre = ordered.mean(axis=1, keepdims=True)  # sums of centred values lose no digits
    mass, moment = _sums(ordered - centre, importance[order])
    cuts = optimal_cuts(ordered, mass, moment, k)
    means = np.sort(_means(mass, moment, cuts) + centre, axis=1)
    tables = means.astype(np.float16)
    found = _nearest(ordered, tables.astype(np.float64))
    indices = np.empty(values.shape, np.uint8)
    np.put_along_axis(indices, order, found, axis=1)
    return tables, indices


def _sums(values: Array, importance: Array) -> tuple[Array, Array]:
    """Return running sums of the weights and of the weighted values, `(groups, n + 1)` each, from 0."""
    sums = np.zeros((2, values.shape[0], values.shape[1] + 1))
    np.cumsum(importance, axis=1, out=sums[0, :, 1:])
    np.cumsum(importance * values, axis=1, out=sums[1, :, 1:])
    return sums[0], sums[1]


def optimal_cuts(ordered: Array, mass: Array, moment: Array, k: int) -> Cuts:
    """Return the cuts `(groups, k + 1)` of the sorted values into k runs with the least squared error.

    `ordered` `(groups, n)`, `mass` and `moment` `(groups, n + 1)` their running sums.
    """
    n = ordered.shape[1]
    candidates = max(CANDIDATES, 2 * k)
    if n <= EXACT:
        return _programme(mass, moment, np.broadcast_to(np.arange(n + 1), mass.shape), k)
    positions = _candidates(ordered, mass, candidates)
    cuts = _programme(mass, moment, positions, k)
    step = -(-n // candidates)
    while True:
        cuts = _refine(mass, moment, cuts, step)
        if step == 1:
            return _lloyd(ordered, mass, moment, cuts)
        step = -(-step // SHRINK)


def _candidates(ordered: Array, mass: Array, count: int) -> Cuts:
    """Place `count` cuts with the density of an ideal quantiser's levels, the cube root of the values' density.

    Panter and Dite (1951); a value's density is its weight over its gap, so gap^(2/3) weight^(1/3) between neighbours.
    """
    gaps = np.diff(ordered, axis=1)
    measure = np.zeros_like(mass)
    np.cumsum(np.cbrt(gaps * gaps * np.diff(mass[:, 1:], axis=1)), axis=1, out=measure[:, 1:-1])
    measure[:, -1] = measure[:, -2]
    # Half of the candidates follow the count: spacings of few or equal values estimate the density badly.
    measure = measure / np.maximum(measure[:, -1:], 1e-300) + np.linspace(0.0, 1.0, mass.shape[1])
    targets = np.linspace(0.0, 2.0, count + 1)[1:-1]
    inner = np.stack([np.searchsorted(line, targets) for line in measure])
    ends = np.zeros((len(inner), 1), np.intp)
    return np.concatenate([ends, inner, ends + ordered.shape[1]], axis=1)


def _gain(mass: Array, moment: Array) -> Array:
    """Return moment^2 / mass, by which a run's squared error is less than its raw second moment."""
    return np.divide(moment * moment, mass, out=np.zeros_like(mass), where=mass > 0)


def _programme(mass: Array, moment: Array, positions: Cuts, k: int) -> Cuts:
    """Return the best k runs whose cuts lie on `positions` `(groups, p)`, from 0 to n, by dynamic programming."""
    m, s = np.take_along_axis(mass, positions, 1), np.take_along_axis(moment, positions, 1)
    # gain[g, j, i] of the run from position i to j; a run that ends before it starts is forbidden
    gain = _gain(m[:, :, None] - m[:, None, :], s[:, :, None] - s[:, None, :])
    gain[:, np.triu(np.ones(gain.shape[1:], bool), 1)] = -np.inf
    best, choices = gain[:, :, 0], []
    for _ in range(k - 1):
        total = gain + best[:, None, :]
        choices.append(total.argmax(axis=2))
        best = np.take_along_axis(total, choices[-1][:, :, None], 2)[:, :, 0]
    path = [np.full(len(mass), positions.shape[1] - 1)]
    for choice in reversed(choices):
        path.append(choice[np.arange(len(mass)), path[-1]])
    path.append(np.zeros(len(mass), np.intp))
    return np.take_along_axis(positions, np.stack(path[::-1], axis=1), axis=1)


def _refine(mass: Array, moment: Array, cuts: Cuts, step: int) -> Cuts:
    """Move each cut by up to STEPS times `step` values: one programme over all cuts' windows together."""
    offsets = np.arange(-STEPS, STEPS + 1) * step
    windows = np.clip(cuts[:, 1:-1, None] + offsets, 0, mass.shape[1] - 1)  # (groups, k - 1, window)
    m = np.take_along_axis(mass[:, None, :], windows, 2)
    s = np.take_along_axis(moment[:, None, :], windows, 2)
    best, choices = _gain(m[:, 0], s[:, 0]), []
    for cut in range(1, windows.shape[1]):
        run = _gain(m[:, cut, :, None] - m[:, cut - 1, None, :], s[:, cut, :, None] - s[:, cut - 1, None, :])
        total = np.where(windows[:, cut, :, None] >= windows[:, cut - 1, None, :], run + best[:, None, :], -np.inf)
        choices.append(total.argmax(axis=2))
        best = total.max(axis=2)
    best = best + _gain(mass[:, -1:] - m[:, -1], moment[:, -1:] - s[:, -1])
    path = [best.argmax(axis=1)]
    for choice in reversed(choices):
        path.append(choice[np.arange(len(cuts)), path[-1]])
    moved = cuts.copy()
    moved[:, 1:-1] = np.take_along_axis(windows, np.stack(path[::-1], axis=1)[:, :, None], 2)[:, :, 0]
    return moved


def _means(mass: Array, moment: Array, cuts: Cuts) -> Array:
    """Return the mean of each run `(groups, k)`; an empty run takes the mean of the one before it."""
    m = np.diff(np.take_along_axis(mass, cuts, 1), axis=1)
    s = np.diff(np.take_along_axis(moment, cuts, 1), axis=1)
    means = s / np.maximum(m, 1e-300)
    filled = np.maximum.accumulate(np.where(m > 0, np.arange(m.shape[1]), 0), axis=1)
    first = np.argmax(m > 0, axis=1)[:, None]
    return np.take_along_axis(means, np.maximum(filled, first), axis=1)


def _lloyd(ordered: Array, mass: Array, moment: Array, cuts: Cuts, rounds: int = 10) -> Cuts:
    """Put each cut midway between its neighbours' means until nothing moves (or `rounds` are over)."""
    centre = (ordered.mean(axis=1))[:, None]
    for _ in range(rounds):
        means = _means(mass, moment, cuts) + centre
        middles = (means[:, 1:] + means[:, :-1]) / 2
        moved = cuts.copy()
        for line, edges, cut in zip(ordered, middles, moved, strict=True):
            cut[1:-1] = np.searchsorted(line, edges)
        if np.array_equal(moved, cuts):
            break
        cuts = moved
    return cuts


def _nearest(ordered: Array, tables: Array) -> NDArray[np.uint8]:
    """Return the index of the nearest table value for sorted values `(groups, n)`."""
    middles = (tables[:, 1:] + tables[:, :-1]) / 2
    found = np.empty(ordered.shape, np.uint8)
    for line, edges, index in zip(ordered, middles, found, strict=True):
        ends = np.concatenate([[0], np.searchsorted(line, edges), [len(line)]])
        index[:] = np.repeat(np.arange(tables.shape[1]), np.diff(ends))
    return found
