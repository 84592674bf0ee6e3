"""Places in a text, and whether a word beside one speaks for or against it: what the finders of `pii` share."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

Places = Iterator[tuple[int, int]]
"""Findings of one kind: start and end, in order of the text or not."""


@dataclass(frozen=True, order=True)
class Span:
    """A finding: `text[start:end]` is of this kind."""

    start: int
    end: int
    kind: str


_RUN = re.compile(r"\d[\d \u00a0().+/\u2010-\u2013-]{5,}")


@lru_cache(maxsize=2)
def digit_runs(text: str) -> list[tuple[int, int]]:
    """Where digits stand with nothing but blanks and the signs of numbers between them, with two characters around.

    Most of a text is none of that: expressions for numbers of six characters and more need only look in there.
    """
    return [(max(0, run.start() - 2), run.end() + 2) for run in _RUN.finditer(text)]


def in_digit_runs(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """Find a pattern of digits, blanks and the signs of numbers, wherever it stands."""
    for start, end in digit_runs(text):
        yield from pattern.finditer(text, start, end)


def before(text: str, start: int, words: re.Pattern[str], width: int = 48) -> bool:
    """Tell whether the words stand in the `width` characters before `start`, on its line or the one above."""
    return words.search(text[max(0, start - width) : start]) is not None


def near(text: str, place: tuple[int, int], words: re.Pattern[str], ahead: int = 64, behind: int = 28) -> bool:
    """Tell whether the words stand within `ahead` characters before a place or `behind` after it, in its paragraph."""
    start, end = place
    left = text[max(0, start - ahead) : start].rpartition("\n\n")[2]
    right = text[end : end + behind].partition("\n")[0]
    return words.search(left) is not None or words.search(right) is not None
