"""Examples that ask what a benchmark's item asks in other words, found by a sentence encoder (part of step `screen`).

A paraphrase shares no run of 13 words with its item. Two questions are taken for one when they name the same numbers
and their vectors' cosine is high enough: "Was 1990 a leap year?" is the benchmark's question, "Was 2081 a leap year?"
is not, however near. The encoder is the sources' `models/embedder` (`openafm.sampling.embedding`).
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openafm import jsonl
from openafm.data import decontaminate
from openafm.sampling.embedding import Embedder

SPELLED = {
    word: str(value)
    for value, word in enumerate("two three four five six seven eight nine ten eleven twelve".split(), 2)
}
"""Numbers that are as often spelled out; "one" is as often no number."""
_DOCSTRING = re.compile(r'"""(.*?)"""', re.S)
_EXAMPLES = re.compile(r">>>|\b(?:examples?|for example)\b", re.I)


@dataclass(frozen=True)
class Near:
    """An example's question and the benchmark item nearest to it."""

    similarity: float
    """Cosine of their vectors."""
    same_numbers: bool
    benchmark: str
    item: str
    asked: str
    text: str
    """The item's own words."""


def numbers(text: str) -> tuple[str, ...]:
    """The numbers of a text, sorted as texts: the same ones in another order are equal."""
    found = re.findall(r"\d+(?:\.\d+)?|[a-z]+", text.casefold().replace(",", ""))
    return tuple(sorted(SPELLED.get(part, part) for part in found if part[0].isdigit() or part in SPELLED))


def questions(item: dict[str, Any]) -> list[str]:
    """What a benchmark item asks; of code that is to be completed also its docstring's prose."""
    asked = decontaminate.questions(item)
    prose = [" ".join(_EXAMPLES.split(doc)[0].split()) for text in asked for doc in _DOCSTRING.findall(text)]
    return [text for text in asked + prose if text.strip()]


def asked(row: dict[str, Any]) -> list[str]:
    """What people ask in an example: every user's turn without a list of tools, or the questions of a long text."""
    turns = [str(m["content"]) for m in row.get("messages", ()) if m["role"] == "user"]
    bare = [text.partition("\n")[2] if text.startswith("Tools: ") else text for text in turns]
    return [text for text in [*bare, *(entry["question"] for entry in row.get("questions", ()))] if text.strip()]


class Meanings:
    """The items of all benchmarks as vectors, to be asked for the nearest."""

    def __init__(self, embedder: Embedder, items: Sequence[tuple[str, str, str]]):
        self.embedder, self.items = embedder, items
        self.vectors = embedder.embed([text for _, _, text in items])
        self.by_numbers: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for place, (_, _, text) in enumerate(items):
            self.by_numbers[numbers(text)].append(place)

    @classmethod
    def open(cls, sources: Path) -> "Meanings | None":
        """Of the sources' benchmarks, by the sources' encoder; None where either is missing."""
        items = [
            (path.stem, str(row["id"]), text)
            for path in sorted((sources / "benchmarks").glob("*.jsonl"))
            for row in jsonl.read(path)
            for text in questions(row)
        ]
        embedder = Embedder.find(sources / "models" / "embedder") if items else None
        return cls(embedder, items) if embedder else None

    def nearest(self, texts: Sequence[str]) -> list[tuple[Near, Near | None]]:
        """For each text the nearest item of all, and the nearest of those with its numbers, if there are any."""
        cosines = self.embedder.embed(texts) @ self.vectors.T  # (texts, items)
        found: list[tuple[Near, Near | None]] = []
        for text, row in zip(texts, cosines, strict=True):
            like = self.by_numbers.get(numbers(text), [])
            same = self.pair(text, row, like[int(row[like].argmax())]) if like else None
            found.append((self.pair(text, row, int(row.argmax())), same))
        return found

    def pair(self, text: str, cosines: np.ndarray, place: int) -> Near:
        """A text and the item at a place, given the text's cosines with all of them."""
        benchmark, item, words = self.items[place]
        return Near(round(float(cosines[place]), 4), numbers(text) == numbers(words), benchmark, item, text, words)
