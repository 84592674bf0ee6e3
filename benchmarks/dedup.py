"""Near-duplicate search: ours against datasketch, on real text with edited copies, at the same threshold.

    python benchmarks/dedup.py --documents 1000

Texts are cut from the Python standard library's sources and copied with small edits. Both find groups at Jaccard 0.8 of
word 5-grams with 126 hashes; recall is the share of brute force's pairs that share a group. The limit is reading and
hashing the words alone. datasketch is set up as its users do: MinHash.update_batch, MinHashLSH.
"""

import itertools
import random
import sysconfig
from pathlib import Path

from harness import alternate, options, show, timed
from openafm.data.dedup import BANDS, ROWS, Components, near_duplicates
from openafm.data.ngrams import WordHashes, words

THRESHOLD = 0.8


def corpus(count: int, seed: int = 0) -> list[str]:
    """`count` texts of some 400 words, a third of them edited copies of others."""
    draw, listed = random.Random(seed), []
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("**/*.py"))
    draw.shuffle(paths)
    while len(listed) < count * 2 // 3:
        text = paths.pop().read_text("utf-8", "replace").split()
        pieces = [text[i : i + 400] for i in range(0, len(text) - 300, 400)]
        listed += draw.sample(pieces, min(6, len(pieces)))
    listed = listed[: count * 2 // 3]
    for original in draw.choices(listed, k=count - len(listed)):
        copy = list(original)
        for _ in range(draw.randint(0, 14)):
            copy[draw.randrange(len(copy))] = draw.choice(original)
        listed.append(copy)
    draw.shuffle(listed)
    return [" ".join(text) for text in listed]


def grams(text: str) -> set[str]:
    """Word 5-grams as strings."""
    listed = words(text)
    return {" ".join(listed[i : i + 5]) for i in range(max(1, len(listed) - 4))}


def with_datasketch(texts: list[str]) -> list[set[int]]:
    """Groups by MinHashLSH and connected components, candidates verified by the sketches' estimate."""
    from datasketch import MinHash, MinHashLSH

    index, components, sketches = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS)), Components(len(texts)), []
    for number, text in enumerate(texts):
        sketch = MinHash(num_perm=BANDS * ROWS)
        sketch.update_batch([gram.encode() for gram in sorted(grams(text))])
        for other in index.query(sketch):
            if sketch.jaccard(sketches[other]) >= THRESHOLD:
                components.join(other, number)
        index.insert(number, sketch)
        sketches.append(sketch)
    return components.groups()


def quality(groups: list[set[int]], similar: set[tuple[int, int]]) -> dict[str, float]:
    """Recall of similar pairs."""
    group_of = {i: number for number, group in enumerate(groups) for i in group}
    found = sum(group_of.get(a, -1) == group_of.get(b, -2) for a, b in similar)
    return {"recall": round(found / max(1, len(similar)), 4), "pairs": len(similar)}


def similar_pairs(texts: list[str]) -> set[tuple[int, int]]:
    """Brute force, over pairs that have a 5-gram in common."""
    sets = list(map(grams, texts))
    holders: dict[str, list[int]] = {}
    for number, found in enumerate(sets):
        for gram in found:
            holders.setdefault(gram, []).append(number)
    pairs = {pair for found in holders.values() for pair in itertools.combinations(found, 2)}
    return {(a, b) for a, b in pairs if len(sets[a] & sets[b]) >= THRESHOLD * len(sets[a] | sets[b])}


def main() -> None:
    chosen = options(__doc__, documents=1000)
    texts = corpus(chosen.documents)
    contestants = {
        "openafm": lambda: len(texts) / timed(lambda: near_duplicates(texts, THRESHOLD)),
        "datasketch": lambda: len(texts) / timed(lambda: with_datasketch(texts)),
    }
    figures = alternate(contestants, chosen.repeats)
    limit = len(texts) / min(timed(lambda: [WordHashes().of(words(text)) for text in texts]) for _ in range(3))
    similar = similar_pairs(texts)
    found = {"openafm": near_duplicates(texts, THRESHOLD), "datasketch": with_datasketch(texts)}
    detail = {name: quality(groups, similar) for name, groups in found.items()}
    print(detail)
    limit_is = "reading and hashing the words"
    show("dedup", "documents/s", figures, limit=limit, limit_is=limit_is, detail=detail, as_json=chosen.json)


if __name__ == "__main__":
    main()
