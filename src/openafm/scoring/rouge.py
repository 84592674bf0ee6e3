"""ROUGE-1, ROUGE-2 and ROUGE-L: F1 of what two texts share in words (Lin, 2004); summaries are scored by it.

Words are runs of letters and digits, lower-cased; nothing is stemmed.
"""

import re
from collections import Counter
from collections.abc import Sequence

WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """A text's words, lower-cased."""
    return WORD.findall(text.lower())


def rouge_n(candidate: str, reference: str, n: int) -> float:
    """Return the F1 in [0, 1] of shared n-grams, each counted as often as both have it (Lin, 2004, section 2)."""
    ours, theirs = (_ngrams(words(text), n) for text in (candidate, reference))
    common = (ours & theirs).total()
    return 2 * common / (ours.total() + theirs.total()) if common else 0.0


def _ngrams(listed: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(listed[start : start + n]) for start in range(len(listed) - n + 1))


def rouge_l(candidate: str, reference: str) -> float:
    """Return the F1 in [0, 1] of the longest common subsequence of words (section 3); 0 where either has none."""
    ours, theirs = words(candidate), words(reference)
    common = longest_common_subsequence(ours, theirs)
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest sequence of words that is in both, in order, gaps allowed."""
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for j, other in enumerate(second, 1):
            above = row[j]
            row[j] = diagonal + 1 if word == other else max(above, row[j - 1])
            diagonal = above
    return row[-1]
