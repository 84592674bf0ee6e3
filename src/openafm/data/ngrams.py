"""Words and their n-grams as 64-bit numbers: what near duplicates and benchmark contamination are found by.

Words are runs of letters, digits and underscores, case folded, so case, punctuation and white space make no difference.
"""

import re

import numpy as np
import xxhash

_WORD = re.compile(r"\w+")
_BASE = np.uint64(0x9E3779B97F4A7C15)


def words(text: str) -> list[str]:
    """The words of `text` in order, case folded."""
    return _WORD.findall(text.casefold())


class WordHashes(dict[str, int]):
    """xxHash of each word, computed once a word."""

    def __missing__(self, word: str) -> int:
        value = self[word] = xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass"))
        return value

    def of(self, listed: list[str]) -> np.ndarray:
        """(words,) uint64."""
        return np.fromiter(map(self.__getitem__, listed), np.uint64, len(listed))


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
