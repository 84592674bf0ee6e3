"""Words and their n-grams as numbers, for many texts at once: what near duplicates and unseen texts are told by.

Words are runs of letters, digits and underscores, case folded, so case, punctuation and white space make no difference.
All texts of a batch are one array of code points; nothing here is done word by word.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np

_WORD = re.compile(r"\w+")
_BASE = np.uint64(0x9E3779B97F4A7C15)
_INVERSE = np.uint64(pow(int(_BASE), -1, 2**64))
BATCH_CHARACTERS = 2**18
"""Characters that are worked on at once: a few arrays of so many numbers stay in cache."""


def words(text: str) -> list[str]:
    """The words of `text` in order, case folded."""
    return _WORD.findall(text.casefold())


@cache
def _is_word() -> np.ndarray:
    """(1114112,) bool: the code points that words are made of."""
    table = np.zeros(0x110000, bool)
    for run in _WORD.finditer("".join(map(chr, range(0x110000)))):
        table[slice(*run.span())] = True
    return table


@cache
def _powers(base: np.uint64, bits: int) -> np.ndarray:
    return np.multiply.accumulate(np.concatenate([np.ones(1, np.uint64), np.full(2**bits - 1, base)]))


def powers(base: np.uint64, size: int) -> np.ndarray:
    """(size,) uint64: powers of the base, modulo 2^64; the base is odd, so they have inverses."""
    return _powers(base, max(18, size.bit_length()))[:size]


def prefix_sums(points: np.ndarray) -> np.ndarray:
    """(points + 1,) uint64: sums of code points times powers of the base."""
    sums = np.zeros(len(points) + 1, np.uint64)
    np.cumsum(points * powers(_BASE, len(points)), out=sums[1:])
    return sums


def stretch_hashes(sums: np.ndarray, starts: np.ndarray, lengths: np.ndarray | int) -> np.ndarray:
    """(starts,) uint64: the polynomial of the code points of each stretch: a difference of prefix sums."""
    hashes: np.ndarray = (sums[starts + lengths] - sums[starts]) * powers(_INVERSE, len(sums))[starts]
    return hashes


def mix(numbers: np.ndarray) -> np.ndarray:
    """Change uint64 numbers in place so that each bit depends on all (the finaliser of splitmix64)."""
    numbers ^= numbers >> np.uint64(30)
    numbers *= np.uint64(0xBF58476D1CE4E5B9)
    numbers ^= numbers >> np.uint64(27)
    numbers *= np.uint64(0x94D049BB133111EB)
    numbers ^= numbers >> np.uint64(31)
    return numbers


def word_hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(words,) uint64: a number for each word of the texts in order; (texts + 1,) int64: where each text's begin.

    A word's number is the polynomial of its code points at an odd base, mixed: a difference of prefix sums.
    """
    folded = [text.casefold() for text in texts]
    points = np.frombuffer("\n".join([*folded, ""]).encode("utf-32-le", "surrogatepass"), np.uint32)
    inside = _is_word()[points]
    if not inside.any():
        return np.zeros(0, np.uint64), np.zeros(len(texts) + 1, np.int64)
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1  # the last point is a line's end, outside of words
    edges = np.concatenate([[0], edges]) if inside[0] else edges
    starts, ends = edges[::2], edges[1::2]
    found = mix(stretch_hashes(prefix_sums(points), starts, ends - starts))
    texts_start = np.cumsum([0, *(len(text) + 1 for text in folded)])
    return found, np.searchsorted(starts, texts_start)


def ngram_hashes(hashes: np.ndarray, n: int) -> np.ndarray:
    """(words - n + 1,) uint64: a number for each n-gram, from its words' hashes in order; empty when words < n."""
    count = len(hashes) - n + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    mixed = hashes[:count].copy()
    for offset in range(1, n):
        mixed *= _BASE
        mixed += hashes[offset : offset + count]
    mixed ^= mixed >> np.uint64(32)  # finalise (splitmix64): neighbouring n-grams must differ in every bit
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(29)
    return mixed


def shingles(texts: Sequence[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """(shingles,) uint32: the hashed word n-grams of each text, sorted, each once; (texts + 1,) int64: where each
    text's begin. A text of fewer words is one shingle, one without words none.
    """
    parts, counts = [np.zeros(0, np.uint32)], [np.zeros(1, np.int64)]
    for start, end in batched(texts):
        found, sizes = _shingles(*word_hashes(texts[start:end]), n)
        parts.append(found)
        counts.append(sizes)
    return np.concatenate(parts), np.cumsum(np.concatenate(counts))


def batched(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Cut texts into batches of about BATCH_CHARACTERS: (first, behind the last)."""
    start = size = 0
    for at, text in enumerate(texts):
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield start, at + 1
            start, size = at + 1, 0
    if start < len(texts):
        yield start, len(texts)


def _shingles(hashes: np.ndarray, offsets: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Shingles of a batch, and how many each text has."""
    lengths = np.diff(offsets)
    counts = np.maximum(lengths - n + 1, 0)
    all_grams = (ngram_hashes(hashes, n) >> np.uint64(32)).astype(np.uint64)
    keys = all_grams[spans(offsets[:-1], counts)] | np.repeat(np.arange(len(lengths), dtype=np.uint64) << 32, counts)
    short = np.flatnonzero((lengths > 0) & (lengths < n))
    whole = [ngram_hashes(hashes[offsets[i] : offsets[i + 1]], lengths[i])[0] >> np.uint64(32) for i in short]
    keys = np.sort(np.concatenate([keys, np.array(whole, np.uint64) | (short.astype(np.uint64) << np.uint64(32))]))
    keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if len(keys) else keys
    owner = (keys >> np.uint64(32)).astype(np.int64)
    return keys.astype(np.uint32), np.bincount(owner, minlength=len(lengths))


def spans(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(sum of counts,) int64: the places start, start + 1, ... of each span, one span after the other."""
    ends = np.cumsum(counts)
    places: np.ndarray = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + counts, counts)
    return places
