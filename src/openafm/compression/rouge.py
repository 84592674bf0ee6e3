"""ROUGE-L: F1 of the longest common subsequence of words (Lin, 2004, section 3); summaries are scored by it."""

import re
from collections.abc import Sequence

WORD = re.compile(r"\w+")


def rouge_l(candidate: str, reference: str) -> float:
    """Return the F1 in [0, 1] between two texts' lower-cased words; 0 where either has none."""
    ours, theirs = WORD.findall(candidate.lower()), WORD.findall(reference.lower())
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
