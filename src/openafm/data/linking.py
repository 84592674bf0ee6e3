"""Which documents are copies of one another: exact copies, pairs that share a band, pairs that are truly alike.

The work on disk behind step `dedup`. A task is a range of keys (what shares a key is in one range) or a part of the
documents; each reads slices of the signed parts, holds one piece in memory and writes one file.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from openafm.data.minhash import jaccard, pairs, unique
from openafm.data.ngrams import spans
from openafm.data.signed import Signed

RANGE_BYTES = 64_000_000
_ENTRY_BYTES = 16
_MOST_RANGES = 256
_AT_ONCE = 512  # pairs verified together

Sets = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Document numbers -> their shingles, and where each document's begin."""


def ranges(entries: int) -> list[tuple[int, int]]:
    """Cut the 64-bit numbers into ranges that hold RANGE_BYTES of so many entries each: (from, to below).

    There are at most 256, since every range is a slice of every part: a billion documents have ranges of more bytes.
    """
    count = 1
    while entries * _ENTRY_BYTES > RANGE_BYTES * count and count < _MOST_RANGES:
        count *= 2
    step = 2**64 // count
    return [(at * step, (at + 1) * step) for at in range(count)]


class Copies:
    """Finds the exact copies among the documents whose texts' hashes are in a range; `gone` are not in."""

    def __init__(self, folders: Sequence[str], old: int, gone: str, out: str) -> None:
        self.signed, self.gone, self.out = Signed(folders, old), np.load(gone), Path(out)

    def __call__(self, task: tuple[int, int]) -> int:
        """Write the (copy, first) pairs of a range; how many."""
        low, high = task
        keys, numbers = self.signed.slices("texts", low, high)
        keys, numbers = keys[~self.gone[numbers]], numbers[~self.gone[numbers]]
        order = np.lexsort((numbers, keys))
        keys, numbers = keys[order], numbers[order]
        shared = np.zeros(len(keys), bool)
        shared[1:] = keys[1:] == keys[:-1]
        shared[:-1] |= shared[1:]
        numbers = np.sort(numbers[shared])
        found = equal_texts(self.signed.facts(numbers)["text"], numbers)
        np.save(self.out / f"{low:016x}.npy", found[found[:, 0] >= self.signed.old])
        return len(found)


def equal_texts(hashes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """(copies, 2) int64: each document with the hash (two uint64) of an earlier one, and the first of these."""
    order = np.lexsort((numbers, hashes[:, 1], hashes[:, 0]))
    hashes, numbers = hashes[order], numbers[order]
    new = np.concatenate([[True], (hashes[1:] != hashes[:-1]).any(axis=1)]) if len(numbers) else np.zeros(0, bool)
    first = numbers[new][np.cumsum(new) - 1] if len(numbers) else numbers
    pairs: np.ndarray = np.stack([numbers, first], axis=1)[~new]
    return pairs


class Candidates:
    """Finds the pairs that share a band, of the bands whose keys are in a range; `gone` marks exact copies."""

    def __init__(self, folders: Sequence[str], old: int, gone: str, out: str) -> None:
        self.signed, self.gone, self.out = Signed(folders, old), np.load(gone), Path(out)

    def __call__(self, task: tuple[int, int]) -> int:
        """Write the pairs of a range, sorted by the later document; how many."""
        low, high = task
        keys, numbers = self.signed.slices("keys", low, high)
        there = ~self.gone[numbers]
        found = pairs(keys[there], numbers[there])
        found = found[found[:, 1] >= self.signed.old]
        np.save(self.out / f"{low:016x}.npy", found[np.lexsort((found[:, 0], found[:, 1]))])
        return len(found)


class Verify:
    """Keeps the candidate pairs of a part's documents with other and earlier ones that are truly alike."""

    def __init__(self, folders: Sequence[str], old: int, candidates: str, threshold: float, out: str) -> None:
        self.signed, self.candidates, self.out = Signed(folders, old), Path(candidates), Path(out)
        self.threshold = threshold

    def __call__(self, part: int) -> int:
        """Write the edges of a part; how many."""
        low, high = self.signed.starts[part : part + 2]
        found = [np.zeros((0, 2), np.int64)]
        for path in sorted(self.candidates.glob("*.npy")):
            stored = np.load(path, mmap_mode="r")
            start, end = np.searchsorted(stored[:, 1], [low, high])
            found.append(np.array(stored[start:end]))
        edges = verified(unique(np.concatenate(found)), self.signed.sets, self.threshold)
        np.save(self.out / f"{part:08}.npy", edges)
        return len(edges)


def verified(found: np.ndarray, sets: Sets, threshold: float) -> np.ndarray:
    """(edges, 2) int64: the pairs whose similarity is at least `threshold`, but for those that are linked already."""
    linked, edges = Linked(), [np.zeros((0, 2), np.int64)]
    for start in range(0, len(found), _AT_ONCE):
        apart = [(a, b) for a, b in found[start : start + _AT_ONCE].tolist() if linked.root(a) != linked.root(b)]
        some = np.array(apart, np.int64).reshape(-1, 2)
        alike = some[similarity(some[:, 0], some[:, 1], sets) >= threshold]
        for a, b in alike.tolist():
            linked.join(a, b)
        edges.append(alike)
    return np.concatenate(edges)


def similarity(first: np.ndarray, second: np.ndarray, sets: Sets) -> np.ndarray:
    """(pairs,) Jaccard similarity of documents by number."""
    numbers, places = np.unique(np.concatenate([first, second]), return_inverse=True)
    shingles, offsets = sets(numbers)
    sides = [_gather(shingles, offsets, side) for side in (places[: len(first)], places[len(first) :])]
    return jaccard(sides[0], sides[1])


def _gather(shingles: np.ndarray, offsets: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    counts = offsets[places + 1] - offsets[places]
    return shingles[spans(offsets[places], counts)], np.concatenate([[0], np.cumsum(counts)])


class Linked:
    """Union-find over the few documents that a task touches: which hang together so far."""

    def __init__(self) -> None:
        self.parent: dict[int, int] = {}

    def root(self, item: int) -> int:
        """The component's smallest item."""
        while (above := self.parent.get(item, item)) != item:
            self.parent[item] = self.parent.get(above, above)
            item = above
        return item

    def join(self, a: int, b: int) -> None:
        """Make the components of `a` and `b` one."""
        low, high = sorted((self.root(a), self.root(b)))
        self.parent[high] = low


def saved(folder: Path) -> np.ndarray:
    """(pairs, 2) int64 of all files of a folder."""
    return np.concatenate([np.zeros((0, 2), np.int64), *map(np.load, sorted(folder.glob("*.npy")))])
