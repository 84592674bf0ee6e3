"""Documents that hold a benchmark's items are dropped (step `decontaminate`).

AFM drops a document upon any 4- to 13-gram collision with a benchmark, unless the n-gram's collision count reaches a
"common-usage" threshold of 1000 (arXiv 2407.21075, section 3.1.1). A 4-gram of every long question
would match almost any page, so n follows the item, as it follows a benchmark's short items in GPT-3 (arXiv 2005.14165,
appendix C): an item of 13 words or more gives its 13-grams, a shorter one is matched whole, and items
under 4 words cannot be told from chance and are left out (counted). The collision count is the number of documents that
hold the n-gram. The threshold is AFM's for a corpus of trillions of tokens; small recipes scale it and say so.

Words are compared by their letters and digits alone, in a row, so that case, accents, punctuation and white space make
no difference; a match starts and ends where a word does. Hits are found by a table of the n-grams' first 8, 16 or 32
bytes over a sliding window, then verified byte by byte.
"""

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from openafm import jsonl
from openafm.data.documents import drops_by_reason, read, recall
from openafm.data.frames import Drop, daft, kept, write_verdicts
from openafm.data.precision import Hit, audit, evidence_hash
from openafm.stage import Config, Context, Metrics

_NOT_ALNUM = re.compile(r"[\W_]+")
_ALNUM = re.compile(r"[^\W_]+")
_DELETE_ASCII = bytes(c for c in range(128) if not chr(c).isalnum())
_WIDTHS = (8, 16, 32)
_MIX = np.uint64(0x9E3779B97F4A7C15)
_TABLE_BITS = 22


def normalise(text: str) -> str:
    """Case folded, accents and compatibility forms (ligatures, full width) resolved; punctuation still there."""
    folded = text.casefold()
    return folded if folded.isascii() else unicodedata.normalize("NFKD", folded).casefold()


def letters(normalised: str) -> bytes:
    """UTF-8 of the letters and digits of a normalised text, in a row."""
    if normalised.isascii():
        return normalised.encode().translate(None, _DELETE_ASCII)
    return _NOT_ALNUM.sub("", normalised).encode()


def item_ngrams(text: str, min_n: int, max_n: int) -> list[str]:
    """The n-grams that give a benchmark item away, as words with single spaces: n = min(max_n, its length in words).

    Empty when the item has fewer than `min_n` words; n-grams under 8 bytes of letters and digits, or under two bytes a
    word ("0 1 2 3 ... 9 a b c"), are left out.
    """
    words = _ALNUM.findall(_without_marks(normalise(text)))
    n = min(max_n, len(words))
    if n < min_n:
        return []
    grams = (words[start : start + n] for start in range(len(words) - n + 1))
    return [" ".join(gram) for gram in grams if len("".join(gram).encode()) >= max(_WIDTHS[0], 2 * n)]


def _without_marks(normalised: str) -> str:
    """Combining marks are neither letters nor gaps between words."""
    return normalised if normalised.isascii() else "".join(c for c in normalised if not unicodedata.combining(c))


@dataclass(frozen=True)
class Source:
    """A benchmark item that an n-gram is from."""

    benchmark: str
    item: str


def _windows(stream: bytes, width: int) -> np.ndarray:
    """(bytes - width + 1,) uint64: a number for the `width` (8, 16 or 32) bytes that start at each place."""
    count = len(stream) - width + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    eights = np.ndarray((len(stream) - 7,), "<u8", stream, strides=(1,))  # overlapping, unaligned, not copied
    mixed = eights[:count].astype(np.uint64)
    for offset in range(8, width, 8):
        mixed *= _MIX
        mixed += eights[offset : offset + count]
    return mixed


class NgramIndex:
    """N-grams of benchmark items, and where they occur in texts.

    `add` items first, then `find`. Memory grows with the n-grams, not with the texts.
    """

    def __init__(self, min_n: int = 4, max_n: int = 13) -> None:
        self.min_n, self.max_n = min_n, max_n
        self.ngrams: list[str] = []
        self.sources: list[list[Source]] = []
        self._numbers: dict[bytes, int] = {}
        self._streams: list[bytes] = []
        self._tables: dict[int, tuple[np.ndarray, dict[int, list[int]]]] = {}

    def add(self, benchmark: str, item: str, text: str) -> int:
        """Index one item; returns its number of n-grams, 0 for an item too short to be told from chance."""
        found = item_ngrams(text, self.min_n, self.max_n)
        for ngram in found:
            stream = ngram.replace(" ", "").encode()
            number = self._numbers.setdefault(stream, len(self.ngrams))
            if number == len(self.ngrams):
                self.ngrams.append(ngram)
                self._streams.append(stream)
                self.sources.append([])
            if (source := Source(benchmark, item)) not in self.sources[number]:
                self.sources[number].append(source)
        self._tables.clear()
        return len(found)

    def _prepare(self) -> None:
        """Tables by window width: a filter of hash bits, and the n-grams that start with a window."""
        by_width: dict[int, dict[int, list[int]]] = {width: defaultdict(list) for width in _WIDTHS}
        for number, stream in enumerate(self._streams):
            width = max(w for w in _WIDTHS if w <= len(stream))
            by_width[width][int(_windows(stream[:width], width)[0])].append(number)
        for width, starts in by_width.items():
            if starts:
                table = np.zeros(2**_TABLE_BITS, bool)
                table[_slots(np.fromiter(starts, np.uint64, len(starts)))] = True
                self._tables[width] = table, dict(starts)

    def find(self, texts: Sequence[str]) -> list[list[int]]:
        """For each text the numbers of the n-grams in it, sorted, each once."""
        if not self._tables:
            self._prepare()
        return [self._find(text) for text in texts]

    def _find(self, text: str) -> list[int]:
        normalised = normalise(text)
        stream = letters(normalised)
        hits: list[tuple[int, int]] = []
        for width, (table, starts) in self._tables.items():
            windows = _windows(stream, width)
            for place in np.flatnonzero(table[_slots(windows)]).tolist():
                for number in starts.get(int(windows[place]), ()):
                    if stream.startswith(self._streams[number], place):
                        hits.append((number, place))
        if not hits:
            return []
        edges = _edges(normalised)
        return sorted({n for n, place in hits if place in edges and place + len(self._streams[n]) in edges})


def _slots(windows: np.ndarray) -> np.ndarray:
    return ((windows * _MIX) >> np.uint64(64 - _TABLE_BITS)).astype(np.int64)


def _edges(normalised: str) -> set[int]:
    """Places in `letters(normalised)` where a word starts or ends."""
    edges, place = {0}, 0
    for word in _ALNUM.findall(_without_marks(normalised)):
        place += len(word.encode())
        edges.add(place)
    return edges


class DecontaminateConfig(Config):
    """Length of the n-grams and what counts as a common phrase."""

    min_n: int = 4
    """Items shorter than this many words are not looked for."""
    max_n: int = 13
    """Longer items are looked for by their n-grams of this many words."""
    common_count: int = 1000
    """An n-gram in so many documents is a common phrase and drops none; AFM's number, to be scaled with the corpus."""


def read_benchmarks(folder: Path, min_n: int, max_n: int) -> tuple[NgramIndex, dict[str, dict[str, int]]]:
    """Index every `<name>.jsonl` ({"id", "text"} a line) of a folder, and count items, n-grams and items too short.

    Raises ValueError naming file and line of a broken item.
    """
    index, counts = NgramIndex(min_n, max_n), dict[str, dict[str, int]]()
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise ValueError(f"{folder} holds no benchmark (*.jsonl): nothing could be decontaminated against")
    for path in paths:
        count = {"items": 0, "ngrams": 0, "too_short": 0}
        for number, item in enumerate(jsonl.read(path), 1):
            try:
                added = index.add(path.stem, str(item["id"]), item["text"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f'{path}:{number}: not a benchmark item {{"id", "text"}}: {error!r}') from error
            count["items"] += 1
            count["ngrams"] += added
            count["too_short"] += not added
        counts[path.stem] = count
    return index, counts


def _hits(index: NgramIndex, documents: Path) -> list[tuple[str, str, str, list[int]]]:
    """(id, url, flow, n-grams) of the kept documents that hold any, sorted by id."""

    @daft.func.batch(return_dtype=daft.DataType.list(daft.DataType.int64()))
    def ngrams(texts: daft.Series) -> list[list[int]]:
        return index.find(texts.to_pylist())

    frame = kept(documents, "id", "url", "flow", "text").with_column("ngrams", ngrams(daft.col("text")))
    table = frame.select("id", "url", "flow", "ngrams").sort("id").to_pydict()
    rows = zip(*(table[name] for name in ("id", "url", "flow", "ngrams")), strict=True)
    return [(document, url, flow, found) for document, url, flow, found in rows if found]


def decontaminate(config: DecontaminateConfig, context: Context, *, documents: Path, sources: Path) -> Metrics:
    """Drop every document of any flow that holds an n-gram of a benchmark, unless the n-gram is a common phrase.

    Writes the documents, `audit.jsonl` (see `precision`), and `ledger.jsonl` (a line for each document, n-gram and
    item: {"id", "url", "ngram", "documents", "common", "benchmark", "item"}); the metrics count items, n-grams, common
    phrases and dropped documents.
    """
    index, benchmarks = read_benchmarks(sources / "benchmarks", config.min_n, config.max_n)
    context.report("n-grams of benchmarks", 0, None)
    hits = _hits(index, documents)
    counts = Counter(number for _, _, _, found in hits for number in found)
    common = {number for number, count in counts.items() if count >= config.common_count}
    drops, notes, found_in = dict[str, Drop](), dict[str, str](), dict[str, Hit]()
    with (context.out / "ledger.jsonl").open("w", encoding="utf-8") as ledger:
        for document, url, flow, found in hits:
            for number in found:
                line = {"id": document, "url": url, "ngram": index.ngrams[number], "documents": counts[number]}
                for source in index.sources[number]:
                    entry = line | {"common": number in common, "benchmark": source.benchmark, "item": source.item}
                    ledger.write(json.dumps(entry, ensure_ascii=False) + "\n")
            if telling := [number for number in found if number not in common]:
                source = index.sources[telling[0]][0]
                evidence = f'"{index.ngrams[telling[0]]}" of item {source.item} of {source.benchmark}'
                evidence += f", and {len(telling) - 1} more n-grams" if len(telling) > 1 else ""
                drops[document] = drop = Drop(f"benchmark.{source.benchmark}", evidence)
                hashed = evidence_hash(*(index.ngrams[number] for number in telling))
                found_in[document] = Hit(drop.reason, url, hashed, flow, evidence)
            else:
                notes[document] = f'common phrases only, as "{index.ngrams[found[0]]}"'
    funnel = write_verdicts(documents, context.out, "decontaminate", drops, notes=notes)
    table = read(context.out, ("id", "planted", "reason"))
    real = set(table.filter(pa.compute.is_null(table["planted"]))["id"].to_pylist())
    dropped = drops_by_reason(funnel, "decontaminate")
    return {
        "headline": f"{sum(dropped.values())} documents hold one of {len(index.ngrams):,} benchmark n-grams",
        "benchmarks": benchmarks,
        "ngrams": len(index.ngrams),
        "ngrams_found": len(counts),
        "common_phrases": len(common),
        "rule": f"n = min({config.max_n}, words of the item), at least {config.min_n}; "
        f"n-grams in {config.common_count} documents or more drop none",
        "documents_with_common_phrases_only": len(hits) - len(drops),
        "dropped": dropped,
        "planted": recall(table, {"benchmark": ("benchmark.",)}),
        "precision_on_real": audit((hit for document, hit in found_in.items() if document in real), context.out),
    }
