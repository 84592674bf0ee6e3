"""N-grams of benchmark items, and where they occur in texts: what step `decontaminate` and the SFT mixture look up.

Words are compared by their letters and digits alone, in a row, so that case, accents, punctuation, white space and
characters without width make no difference, nor where an item's words are cut; a match starts and ends where a word
does. Of a batch of texts this row is one array of code points with its prefix sums, so that the hash of any stretch is
a difference: at the start of every word a window is looked up among the n-grams' first 4, 8, 16 or 32 letters, and what
is found is compared as a whole. Texts with markup or entities in them are searched without these, too.
"""

import html
import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from openafm.data.ngrams import batched, prefix_sums, spans, stretch_hashes

_WIDTHS = (4, 8, 16, 32)
_LEAST_BYTES = 8
_ALONE = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Scripts without spaces: each letter is a word."""
_WORD = re.compile(rf"(?=\w)[{_ALONE}]|[^\W_{_ALONE}]+")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_MARKUP = re.compile(r"<[a-zA-Z/!][^<>]{0,300}>|\]\([^()\s]{0,300}\)")
_ENTITY = re.compile(r"&#?\w{1,32};")
_PREFIX = re.compile(r"(?:q(?:uestion)?\W*)?(?:\d{1,4}\W+)?")  # "Q: ", "3. ", "Question 3: " before a line's question


@cache
def _kinds() -> np.ndarray:
    """(1114112,) uint8: 1 for letters and digits, 3 for those that are words by themselves, 0 for the rest."""
    kinds = np.zeros(0x110000, np.uint8)
    for word in _WORD.finditer("".join(map(chr, range(sys.maxunicode + 1)))):
        kinds[slice(*word.span())] = 3 if re.match(rf"[{_ALONE}]", word[0]) else 1
    return kinds


@lru_cache(maxsize=2**16)
def _resolved(run: str) -> str:
    """Compatibility forms and accents of other than ASCII letters resolved; marks and what has no width left out."""
    decomposed = unicodedata.normalize("NFKD", run).casefold()
    kept = (c for c in unicodedata.normalize("NFKD", decomposed) if unicodedata.category(c) not in ("Mn", "Me", "Cf"))
    return "".join(kept)


def normalise(text: str) -> str:
    """Case folded, accents and compatibility forms (ligatures, full width) resolved; punctuation still there."""
    folded = text.casefold()
    return folded if folded.isascii() else _NOT_ASCII.sub(lambda run: _resolved(run[0]), folded)


def words(text: str) -> list[str]:
    """The words of a text as they are compared."""
    return _WORD.findall(normalise(text))


def without_markup(text: str) -> str:
    """The text with tags and link targets taken out and entities resolved; itself where there are none."""
    if "<" not in text and "](" not in text and "&" not in text:
        return text
    plain = _MARKUP.sub(" ", text)
    return html.unescape(plain) if _ENTITY.search(plain) else plain


@dataclass(frozen=True)
class Source:
    """A benchmark item that an n-gram is from."""

    benchmark: str
    item: str


_ENTRY = np.dtype(
    [("hash", "<u8"), ("letters", "<u4"), ("item", "<u4"), ("first", "<u4"), ("n", "<u2"), ("line", "?")]
    + [(f"window{width}", "<u8") for width in _WIDTHS]
)
"""An n-gram of an item: its hash and length, whose it is, its first word and number of words, and whether it has to be
a line by itself; hashes of its first letters."""


class NgramIndex:
    """N-grams of benchmark items, and where they occur in texts.

    `add` items first, then `find`. An item of `max_n` words or more gives its n-grams of `max_n` words, or with `every`
    those of `min_n` to `max_n`; a shorter item is matched whole, and one of fewer than `min_n` words, but
    two, only where it is a line by itself. Memory: about 80 bytes an n-gram.
    """

    def __init__(self, min_n: int = 4, max_n: int = 13, every: bool = False) -> None:
        if not 1 <= min_n <= max_n:
            raise ValueError(
                f"min_n {min_n} and max_n {max_n}: n-grams have at least one word, and min_n is the lesser"
            )
        self.min_n, self.max_n, self.every = min_n, max_n, every
        self._items: list[tuple[Source, str]] = []
        self._added: list[np.ndarray] = []
        self._built = False

    def add(self, benchmark: str, item: str, text: str, whole: bool = True) -> int:
        """Index one text of an item; returns its number of n-grams, 0 for one too short to be told from chance.

        Without `whole`, texts of fewer than `max_n` words (answers, options) are left out. N-grams under 8 bytes of
        letters and digits, or under two bytes a word ("0 1 2 3 ... 9 a b c"), are, too.
        """
        listed = words(text)
        if len(listed) < (2 if whole else self.max_n):
            return 0
        line = len(listed) < self.min_n
        longest = min(self.max_n, len(listed))
        lengths = range(min(self.min_n, longest), longest + 1) if self.every else [longest]
        points = np.frombuffer("".join(listed).encode("utf-32-le", "surrogatepass"), np.uint32)
        ends = np.cumsum([0, *map(len, listed)])
        sizes = np.cumsum([0, *(len(word.encode("utf-8", "surrogatepass")) for word in listed)])
        sums = prefix_sums(points)
        found = [self._entries(sums, ends, sizes, n) for n in ([longest] if line else lengths)]
        entries = np.concatenate(found)
        entries["item"], entries["line"] = len(self._items), line
        if len(entries):
            self._items.append((Source(benchmark, item), " ".join(listed)))
            self._added.append(entries)
            self._built = False
        return len(entries)

    def _entries(self, sums: np.ndarray, ends: np.ndarray, sizes: np.ndarray, n: int) -> np.ndarray:
        """The n-grams of an item; `ends` and `sizes` are where its words begin in letters and in bytes."""
        first = np.flatnonzero(sizes[n:] - sizes[:-n] >= max(_LEAST_BYTES, 2 * n))
        entries = np.zeros(len(first), _ENTRY)
        entries["first"], entries["n"] = first, n
        starts, entries["letters"] = ends[first], ends[first + n] - ends[first]
        entries["hash"] = stretch_hashes(sums, starts, ends[first + n] - starts)
        for width in _WIDTHS:
            fits = entries["letters"] >= width
            entries[f"window{width}"][fits] = stretch_hashes(sums, starts[fits], width)
        return entries

    def _build(self) -> None:
        """Number the n-grams in the order in which they came, and sort them by their windows."""
        if self._built:
            return
        entries = np.concatenate([np.zeros(0, _ENTRY), *self._added])
        _, first, same = np.unique(entries["hash"], return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        numbers = rank[same]
        self._of_number = np.argsort(numbers, kind="stable")
        self._starts = np.searchsorted(numbers[self._of_number], np.arange(len(first) + 1))
        self._entries_in_order, self._one = entries, entries[np.sort(first)]
        width_of = np.array(_WIDTHS)[np.searchsorted(_WIDTHS, self._one["letters"], side="right") - 1]
        self._tables = {}
        for width in _WIDTHS:
            some = np.flatnonzero((width_of == width) & (self._one["letters"] >= width))
            if len(some):
                windows = self._one[f"window{width}"][some]
                order = np.argsort(windows, kind="stable")
                bits = max(16, int(16 * len(some)).bit_length())
                table = np.zeros(2**bits, bool)
                table[_slots(windows, bits)] = True
                self._tables[width] = (windows[order], some[order], table, bits)
        self._built = True

    def __len__(self) -> int:
        """Number of different n-grams."""
        self._build()
        return len(self._one)

    def ngram(self, number: int) -> str:
        """An n-gram as words with single spaces."""
        self._build()
        entry = self._one[number]
        return " ".join(self._items[entry["item"]][1].split()[entry["first"] : entry["first"] + entry["n"]])

    def sources(self, number: int) -> list[Source]:
        """The items that have an n-gram, each once, in the order in which they came."""
        self._build()
        entries = self._of_number[self._starts[number] : self._starts[number + 1]]
        return list(dict.fromkeys(self._items[item][0] for item in self._entries_in_order["item"][entries]))

    def find(self, texts: Sequence[str]) -> list[list[int]]:
        """For each text the numbers of the n-grams in it, sorted, each once."""
        self._build()
        plain = [(at, other) for at, text in enumerate(texts) if (other := without_markup(text)) is not text]
        owners = [*range(len(texts)), *(at for at, _ in plain)]
        searched = [*texts, *(other for _, other in plain)]
        found: list[set[int]] = [set() for _ in texts]
        for start, end in batched(searched):
            for at, number in self._find([normalise(text) for text in searched[start:end]]):
                found[owners[start + at]].add(number)
        return [sorted(numbers) for numbers in found]

    def _find(self, normalised: list[str]) -> list[tuple[int, int]]:
        """(text, n-gram) wherever an n-gram is in a batch of normalised texts."""
        points = np.frombuffer("\n".join([*normalised, ""]).encode("utf-32-le", "surrogatepass"), np.uint32)
        kinds = _kinds()[points]
        inside = kinds > 0
        begins = inside.copy()
        begins[1:] &= kinds[1:] + kinds[:-1] != 2  # a letter behind a letter, in scripts with spaces
        row = points[inside]
        sums, before = prefix_sums(row), np.cumsum(inside)
        places = before[begins] - 1
        edge = np.zeros(len(row) + 1, bool)
        edge[places] = edge[-1] = True
        bounds = np.concatenate([[0], before[np.cumsum([len(text) + 1 for text in normalised]) - 1]])
        hits: list[tuple[int, int]] = []
        for width, (windows, numbers, table, bits) in self._tables.items():
            some = places[places + width <= len(row)]
            seen = stretch_hashes(sums, some, width)
            likely = table[_slots(seen, bits)]
            some, seen = some[likely], seen[likely]
            low, high = (np.searchsorted(windows, seen, side=side) for side in ("left", "right"))
            candidates, some = numbers[spans(low, high - low)], np.repeat(some, high - low)
            owner = np.searchsorted(bounds, some, side="right") - 1
            behind = some + self._one["letters"][candidates]
            fits = behind <= bounds[owner + 1]
            fits[fits] &= edge[behind[fits]]
            candidates, some, owner = candidates[fits], some[fits], owner[fits]
            same = (
                stretch_hashes(sums, some, self._one["letters"][candidates].astype(np.int64))
                == self._one["hash"][candidates]
            )
            hits += zip(owner[same].tolist(), candidates[same].tolist(), strict=True)
        return [hit for hit in set(hits) if not self._one["line"][hit[1]] or self._is_line(normalised[hit[0]], hit[1])]

    def _is_line(self, normalised: str, number: int) -> bool:
        """Whether an n-gram is all of a line, but for a number or a "Q:" before it."""
        wanted = self.ngram(number).replace(" ", "")
        lines = (line for line in normalised.splitlines() if len(line) < 4 * len(wanted) + 40)
        starts = ((line, _PREFIX.match(line.lstrip())) for line in lines)
        return any(
            wanted in ("".join(_WORD.findall(line)), "".join(_WORD.findall(line.lstrip()[prefix.end() :])))
            for line, prefix in starts
            if prefix is not None
        )


def _slots(windows: np.ndarray, bits: int) -> np.ndarray:
    return ((windows * np.uint64(0xD6E8FEB86659FD93)) >> np.uint64(64 - bits)).astype(np.int64)
