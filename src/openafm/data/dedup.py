"""Exact and near duplicates across all flows (step `dedup`).

AFM: fuzzy de-duplication by locality-sensitive n-gram hashing (arXiv 2407.21075, section 3.1.1). MinHash signatures of
word 5-grams (Broder 1997) are cut into bands; documents that share a band are candidates (Indyk and Motwani 1998), each
candidate pair is verified by its true Jaccard similarity, and of each connected component one document is kept.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import xxhash

from openafm.data.documents import Row, drops_by_reason
from openafm.data.frames import Drop, daft, kept, write_verdicts
from openafm.data.ngrams import WordHashes, ngram_hashes, words
from openafm.data.precision import Hit, audit, evidence_hash
from openafm.stage import Config, Context, Metrics

NGRAM = 5
BANDS, ROWS = 21, 6
"""A pair of similarity J shares a band with probability 1 - (1 - J^6)^21: 0.998 at 0.8, 0.98 at 0.75, 0.28 at 0.5."""
_CHUNK = 1024  # shingles hashed at once: the table of (hashes, chunk) stays in cache
_MOST_PAIRED = 24  # in larger buckets each member is compared with its neighbours and the first, not with all


def _permutations() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    count = BANDS * ROWS
    multipliers = random.integers(0, 2**31, count, dtype=np.uint32) * np.uint32(2) + np.uint32(1)  # odd: bijective
    return multipliers[:, None], random.integers(0, 2**32, count, dtype=np.uint32)[:, None]


_MULTIPLY, _ADD = _permutations()


def shingles(text: str, hashes: WordHashes) -> np.ndarray:
    """Sorted unique hashes (uint64) of the word 5-grams of `text`; a shorter text is one shingle."""
    listed = hashes.of(words(text))
    return np.unique(ngram_hashes(listed, min(NGRAM, max(1, len(listed)))))


def signature(shingled: np.ndarray) -> np.ndarray:
    """(126,) uint32: the least hash of the shingles under each of 126 permutations; all ones for no shingles."""
    folded = (shingled >> np.uint64(32)).astype(np.uint32)
    least = np.full(BANDS * ROWS, 2**32 - 1, np.uint32)
    for start in range(0, len(folded), _CHUNK):
        table = _MULTIPLY * folded[None, start : start + _CHUNK]
        table += _ADD
        np.minimum(least, table.min(axis=1), out=least)
    return least


def signatures(texts: Sequence[str]) -> np.ndarray:
    """(texts, 126) uint32 MinHash signatures."""
    hashes = WordHashes()
    found = np.empty((len(texts), BANDS * ROWS), np.uint32)
    for row, text in enumerate(texts):
        found[row] = signature(shingles(text, hashes))
    return found


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """|A and B| / |A or B| of two shingle sets, each sorted and unique."""
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / max(1, len(first) + len(second) - common)


def _buckets(signed: np.ndarray) -> Iterator[np.ndarray]:
    """Groups (sorted rows, two or more) that share one band of their signatures."""
    for band in range(BANDS):
        part = np.ascontiguousarray(signed[:, band * ROWS : (band + 1) * ROWS])
        keys = part.view(np.dtype((np.void, part.dtype.itemsize * ROWS))).ravel()
        order = np.argsort(keys, kind="stable")
        edges = np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1
        yield from (group for group in np.split(order, edges) if len(group) > 1)


def _candidates(signed: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of rows that share a band, each once, in order."""
    pairs: set[tuple[int, int]] = set()
    for group in _buckets(signed):
        members = group.tolist()
        if len(members) <= _MOST_PAIRED:
            pairs.update((a, b) for i, a in enumerate(members) for b in members[i + 1 :])
        else:
            pairs.update(pairwise(members))
            pairs.update((members[0], b) for b in members[1:])
    return sorted(pairs)


class Components:
    """Union-find: which items hang together."""

    def __init__(self, size: int) -> None:
        self.parent = list(range(size))

    def root(self, item: int) -> int:
        """The component's smallest item."""
        while self.parent[item] != item:
            self.parent[item] = self.parent[self.parent[item]]
            item = self.parent[item]
        return item

    def join(self, a: int, b: int) -> None:
        """Make the components of `a` and `b` one."""
        low, high = sorted((self.root(a), self.root(b)))
        self.parent[high] = low

    def groups(self) -> list[set[int]]:
        """Components of two or more, by smallest item."""
        found: dict[int, set[int]] = defaultdict(set)
        for item in range(len(self.parent)):
            found[self.root(item)].add(item)
        return [group for _, group in sorted(found.items()) if len(group) > 1]


def _exact(texts: Iterable[str]) -> list[int]:
    """For each text the first index with the same text but for case and white space."""
    first: dict[bytes, int] = {}
    keys = (xxhash.xxh3_128_digest(" ".join(t.casefold().split()).encode("utf-8", "surrogatepass")) for t in texts)
    return [first.setdefault(key, index) for index, key in enumerate(keys)]


def link(texts: Sequence[str], threshold: float, signed: np.ndarray | None = None) -> tuple[list[int], Components]:
    """Exact copies (index of each text's first copy) and the components of near duplicates, exact ones included."""
    originals = _exact(texts)
    components = Components(len(texts))
    for index, original in enumerate(originals):
        components.join(original, index)
    rows = np.array([i for i, original in enumerate(originals) if i == original and texts[i].strip()], np.int64)
    signed = signatures([texts[i] for i in rows]) if signed is None else signed[rows]
    hashes, cache = WordHashes(), dict[int, np.ndarray]()
    for pair in _candidates(signed):
        a, b = (int(rows[i]) for i in pair)
        if components.root(a) == components.root(b):
            continue
        for index in (a, b):
            if index not in cache:
                cache[index] = shingles(texts[index], hashes)
        if jaccard(cache[a], cache[b]) >= threshold:
            components.join(a, b)
    return originals, components


def near_duplicates(texts: Sequence[str], threshold: float = 0.8) -> list[set[int]]:
    """Groups of indices whose texts are the same or near copies: Jaccard of word 5-grams at least `threshold`.

    Pairs are found with the probability given at BANDS; groups are connected components, so two ends of a chain may be
    less alike than `threshold`. The order of `texts` makes no difference while no more than 24 share a band.
    """
    return link(texts, threshold)[1].groups()


class DedupConfig(Config):
    """How alike two documents may be."""

    threshold: float = 0.75
    """Jaccard similarity of word 5-grams from which on two documents are near copies (as in arXiv 2406.17557)."""


@daft.func.batch(return_dtype=daft.DataType.fixed_size_list(daft.DataType.uint32(), BANDS * ROWS))
def _signatures(texts: daft.Series) -> np.ndarray:
    return signatures(texts.to_pylist())


def _best(group: set[int], rows: list[Row]) -> int:
    """The copy to keep: of known licence before unknown, longer before shorter, then the smallest id."""
    return min(group, key=lambda i: (not rows[i]["licence"], -len(rows[i]["text"]), rows[i]["id"]))


def _drop(copy: Row, best: Row, exact: bool, hashes: WordHashes) -> Drop:
    if exact:
        return Drop("duplicate.exact", f"the text of {best['url']}")
    similarity = jaccard(shingles(copy["text"], hashes), shingles(best["text"], hashes))
    return Drop("duplicate.near", f"Jaccard {similarity:.2f} with {best['url']}")


def _hit(copy: Row, best: Row, said: Drop) -> Hit:
    both = evidence_hash(copy["text"], best["text"])
    return Hit(said.reason, copy["url"], both, copy["flow"], said.evidence, copy["text"][:200])


def _planted_found(rows: list[Row], groups: list[set[int]]) -> dict[str, dict[str, int]]:
    """How many planted copies hang together with another document, by kind (a copy itself may be the one kept)."""
    grouped = set().union(*groups)
    kinds = sorted({row["planted"] for row in rows if row["planted"] in ("exact_copy", "near_copy")})
    planted = {kind: [i for i, row in enumerate(rows) if row["planted"] == kind] for kind in kinds}
    return {kind: {"planted": len(of), "found": len(grouped.intersection(of))} for kind, of in planted.items()}


def dedup(config: DedupConfig, context: Context, *, documents: Path) -> Metrics:
    """Drop all but the best copy of each group of equal or nearly equal documents, whatever flow they are from.

    Writes the documents, `groups.jsonl`: {"kept", "dropped"} (ids) for each group, and `audit.jsonl`: the real
    documents that went for a real one (see `precision`).
    """
    context.report("signatures", 0, None)
    frame = kept(documents, "id", "url", "flow", "licence", "planted", "text")
    table = frame.with_column("signature", _signatures(daft.col("text"))).sort("id").to_arrow()
    signed = table["signature"].combine_chunks().flatten().to_numpy().reshape(-1, BANDS * ROWS)
    rows = table.drop_columns(["signature"]).to_pylist()
    originals, components = link([row["text"] for row in rows], config.threshold, signed)
    groups, hashes, drops = components.groups(), WordHashes(), dict[str, Drop]()
    notes, hits = dict[str, str](), list[Hit]()
    with (context.out / "groups.jsonl").open("w") as file:
        for group in context.track(groups, "groups of copies"):
            best = _best(group, rows)
            copies = sorted(group - {best})
            for copy in copies:
                exact = originals[copy] == originals[best]
                drops[rows[copy]["id"]] = said = _drop(rows[copy], rows[best], exact, hashes)
                if not rows[copy]["planted"] and not rows[best]["planted"]:
                    hits.append(_hit(rows[copy], rows[best], said))
            notes[rows[best]["id"]] = f"the best of {len(group)} copies"
            line = {"kept": rows[best]["id"], "dropped": [rows[copy]["id"] for copy in copies]}
            file.write(json.dumps(line) + "\n")
    funnel = write_verdicts(documents, context.out, "dedup", drops, notes=notes)
    dropped = drops_by_reason(funnel, "dedup")
    return {
        "headline": f"{len(rows):,} documents, " + ", ".join(f"{reason} {n}" for reason, n in dropped.items()),
        "documents": len(rows),
        "dropped": dropped,
        "groups": len(groups),
        "largest_group": max(map(len, groups), default=0),
        "across_flows": sum(len({rows[i]["flow"] for i in group}) > 1 for group in groups),
        "planted": _planted_found(rows, groups),
        "precision_on_real": audit(hits, context.out),
    }
