"""MinHash signatures, their bands, and the similarity of sets of shingles, for many documents at once.

A signature's value is the least hash of a document's shingles under a random function of its own: two documents agree
in it with the probability of their Jaccard similarity (Broder 1997). Here 126 such values come from a few hashes of
each shingle instead of 126: in each of some rounds every shingle falls into one of 126 bins at random; a bin takes its
least value of the first round in which anything fell into it, and what is still empty after the last round takes the
least of all shingles under a function of its own (fast similarity sketching, Dahlgaard et al. 2017, arXiv 1704.04370).
For each bin every shingle is equally likely to give the value, so the probability is the same.
"""

import numpy as np

from openafm.data.ngrams import mix, spans

BANDS, ROWS = 21, 6
"""A pair of similarity J shares a band with probability 1 - (1 - J^6)^21: 0.998 at 0.8, 0.98 at 0.75, 0.28 at 0.5."""
_SIZE = BANDS * ROWS
_ROUNDS = 8
_EMPTY = np.uint32(2**32 - 1)
_MOST_PAIRED = 24  # in larger buckets each member is compared with its neighbours and the first, not with all
_AT_ONCE = 1024  # documents whose signatures are computed together


def signatures(shingles: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(documents, 126) uint32 from their sets of shingles (uint32, and where each document's begin)."""
    parts = [np.zeros((0, _SIZE), np.uint32)]
    for start in range(0, len(offsets) - 1, _AT_ONCE):
        cut = offsets[start : start + _AT_ONCE + 1]
        parts.append(_signatures(shingles[cut[0] : cut[-1]], np.diff(cut)))
    return np.concatenate(parts)


def _signatures(shingles: np.ndarray, counts: np.ndarray) -> np.ndarray:
    found = np.full((len(counts), _SIZE), _EMPTY)
    left = np.flatnonzero(counts)
    starts = np.cumsum(counts) - counts
    for number in range(_ROUNDS):
        if not len(left):
            return found
        some = shingles if len(left) == len(counts) else shingles[spans(starts[left], counts[left])]
        new = _round(some, counts[left], number)
        found[left] = np.where(found[left] == _EMPTY, new, found[left])
        left = left[(found[left] == _EMPTY).any(axis=1)]
    for row in left:
        some = shingles[starts[row] : starts[row] + counts[row]]
        empty = np.flatnonzero(found[row] == _EMPTY)
        seeds = (empty.astype(np.uint64) + np.uint64(_ROUNDS + 1)) << np.uint64(32)
        found[row, empty] = (mix(some.astype(np.uint64)[:, None] ^ seeds) >> np.uint64(32)).min(axis=0)
    return found


def _round(shingles: np.ndarray, counts: np.ndarray, number: int) -> np.ndarray:
    """(documents, 126) uint32: the least value in each bin, all ones where nothing fell."""
    mixed = mix(shingles.astype(np.uint64) ^ (np.uint64(number + 1) << np.uint64(32)))
    bins = ((mixed >> np.uint64(32)) * np.uint64(_SIZE)) >> np.uint64(32)
    bins += np.repeat(np.arange(len(counts), dtype=np.uint64) * np.uint64(_SIZE), counts)
    least = np.full(len(counts) * _SIZE, _EMPTY)
    np.minimum.at(least, bins.astype(np.int64), mixed.astype(np.uint32))
    return least.reshape(-1, _SIZE)


def band_keys(signed: np.ndarray) -> np.ndarray:
    """(documents, 21) uint64: a number for each band of each signature, and for the band's place."""
    bands = signed.reshape(len(signed), BANDS, ROWS).astype(np.uint64)
    keys = np.broadcast_to(np.arange(1, BANDS + 1, dtype=np.uint64), (len(signed), BANDS)).copy()
    for row in range(ROWS):
        keys = mix(keys ^ (bands[:, :, row] * np.uint64(0x9E3779B97F4A7C15)))
    return keys


def pairs(keys: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """(pairs, 2) int64, first < second, sorted, each once: documents that share a key.

    Of more than 24 documents with one key, each is paired with the next one and with the first.
    """
    order = np.lexsort((documents, keys))
    keys, documents = keys[order], documents[order].astype(np.int64)
    edges = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, np.int64)
    sizes = np.diff(np.concatenate([edges, [len(keys)]]))
    group, size = np.repeat(np.arange(len(edges)), sizes), np.repeat(sizes, sizes)
    found = [np.zeros((0, 2), np.int64)]
    for step in range(1, int(min(sizes.max(initial=0), _MOST_PAIRED))):
        near = np.flatnonzero((group[step:] == group[:-step]) & ((size[step:] <= _MOST_PAIRED) | (step == 1)))
        found.append(np.stack([documents[near], documents[near + step]], axis=1))
    large = np.flatnonzero(size > _MOST_PAIRED)
    found.append(np.stack([documents[edges[group[large]]], documents[large]], axis=1))
    return unique(np.concatenate(found))


def unique(found: np.ndarray) -> np.ndarray:
    """Pairs of two different documents, the lesser first, sorted, each once."""
    found = np.sort(found[found[:, 0] != found[:, 1]], axis=1)
    found = found[np.lexsort((found[:, 1], found[:, 0]))]
    return found[np.concatenate([[True], (found[1:] != found[:-1]).any(axis=1)])] if len(found) else found


def jaccard(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """(pairs,) float64: |A and B| / |A or B| of each pair of sets; each side is shingles and where each set begins."""
    keys = []
    for shingles, offsets in (first, second):
        owner = np.repeat(np.arange(len(offsets) - 1, dtype=np.uint64) << np.uint64(32), np.diff(offsets))
        keys.append(owner | shingles)
    both = np.sort(np.concatenate(keys))
    owners = (both[1:][both[1:] == both[:-1]] >> np.uint64(32)).astype(np.int64)
    common = np.bincount(owners, minlength=len(first[1]) - 1)
    return common / np.maximum(1, np.diff(first[1]) + np.diff(second[1]) - common)


def components(size: int, edges: np.ndarray) -> np.ndarray:
    """(size,) int64: the smallest member of each item's connected component. `edges` is (edges, 2)."""
    labels = np.arange(size)
    first, second = edges[:, 0], edges[:, 1]
    while True:
        low = np.minimum(labels[first], labels[second])
        np.minimum.at(labels, labels[first], low)
        np.minimum.at(labels, labels[second], low)
        while (labels[labels] != labels).any():
            labels = labels[labels]
        apart = labels[first] != labels[second]
        if not apart.any():
            return labels
        first, second = first[apart], second[apart]
