"""Near-duplicate search: ours against rensa, datatrove and datasketch, on real text with edited copies.

    python benchmarks/dedup.py --documents 20000

All look for groups at Jaccard 0.8 of word 5-grams with 126 hashes in 21 bands, on one core. Recall is the share of the
pairs at 0.8 or more, found by an exact search (prefix filter), that share a group. "in memory": from texts to groups.
"on disk": ours is step `dedup` from parquet parts to parquet parts, datatrove's its four stages from JSONL to JSONL.
Candidates are verified by true similarity (ours), by the signatures' estimate (rensa, datasketch) or not at all
(datatrove, as it comes). rensa's second row is its rho sketch, which only tells which texts have a copy. datasketch is
measured on a tenth of the texts. The limit is hashing every word once.
"""

import itertools
import json
import os
import random
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from harness import alternate, options, show, timed
from openafm.data import documents
from openafm.data.dedup import DedupConfig, dedup, near_duplicates
from openafm.data.linking import Linked
from openafm.data.minhash import BANDS, ROWS
from openafm.data.ngrams import batched, word_hashes, words
from openafm.stage import Context
from texts import with_copies, words_at_white_space

THRESHOLD = 0.8
os.environ["RAYON_NUM_THREADS"] = "1"  # rensa is imported later; all contestants have one core


def tokens(text: str) -> list[str]:
    """Word 5-grams as strings: what the peers are given."""
    listed = words(text)
    return [" ".join(listed[i : i + 5]) for i in range(max(1, len(listed) - 4))]


def groups(pairs: list[tuple[int, int]]) -> list[set[int]]:
    """Connected components."""
    linked, found = Linked(), defaultdict(set)
    for a, b in pairs:
        linked.join(a, b)
    for item in linked.parent:
        found[linked.root(item)] |= {item, linked.root(item)}
    return list(found.values())


def with_rensa(texts: list[str]) -> list[set[int]]:
    """Bulk signatures, its LSH, candidates verified by the signatures' estimate."""
    from rensa import RMinHash, RMinHashLSH

    signed = RMinHash.from_token_sets([tokens(text) for text in texts], BANDS * ROWS, 42)
    index = RMinHashLSH(THRESHOLD, BANDS * ROWS, BANDS)
    index.insert_many(signed)
    pairs = ((a, b) for a, near in enumerate(index.query_all(signed)) for b in near if a < b)
    return groups([(a, b) for a, b in pairs if signed[a].jaccard(signed[b]) >= THRESHOLD])


def with_rensa_rho(texts: list[str]) -> list[set[int]]:
    """Its rho sketch and one-shot search: which texts have a copy, as one group."""
    from rensa import RMinHash, RMinHashLSH

    matrix = RMinHash.digest_matrix_from_token_sets_rho([tokens(text) for text in texts], BANDS * ROWS, 42)
    flags = RMinHashLSH(THRESHOLD, BANDS * ROWS, BANDS).query_duplicate_flags_matrix_one_shot(matrix)
    return [{number for number, flag in enumerate(flags) if flag}]


def with_datasketch(texts: list[str]) -> list[set[int]]:
    """MinHash.update_batch, MinHashLSH, candidates verified by the sketches' estimate."""
    from datasketch import MinHash, MinHashLSH

    index, sketches, pairs = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS)), [], []
    for number, text in enumerate(texts):
        sketch = MinHash(num_perm=BANDS * ROWS)
        sketch.update_batch([token.encode() for token in tokens(text)])
        pairs += [(other, number) for other in index.query(sketch) if sketch.jaccard(sketches[other]) >= THRESHOLD]
        index.insert(number, sketch)
        sketches.append(sketch)
    return groups(pairs)


def with_stage(folder: Path) -> list[set[int]]:
    """Step `dedup` on `folder/documents`."""
    shutil.rmtree(folder / "ours", ignore_errors=True)
    for name in ("out", "scratch"):
        (folder / "ours" / name).mkdir(parents=True)
    context = Context(folder / "ours" / "out", folder / "ours" / "scratch")
    dedup(DedupConfig(threshold=THRESHOLD), context, documents=folder)
    lines = map(json.loads, (folder / "ours" / "out" / "groups.jsonl").read_text().splitlines())
    numbers = {documents.document_id(url(number)): number for number in range(int((folder / "count").read_text()))}
    return [{numbers[i] for i in (line["kept"], *line["dropped"])} for line in lines]


def with_datatrove(folder: Path) -> list[set[int]]:
    """Its four stages, one task each, in this process, on `folder/texts.jsonl`; words are cut at white space."""
    from datatrove.pipeline.readers import JsonlReader

    out = folder / "theirs"
    shutil.rmtree(out, ignore_errors=True)
    datatrove_minhash(JsonlReader(str(folder), glob_pattern="texts.jsonl"), out)
    return _clusters(out / "clusters")


def datatrove_minhash(reader: Any, out: Path) -> None:
    """datatrove's four stages over what a reader of its own gives; what stays is in `out`/kept."""
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter
    from datatrove.pipeline.dedup import MinhashDedupSignature as Signature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.writers.jsonl import JsonlWriter
    from datatrove.utils.logging import logger

    logger.remove()
    config = MinhashConfig(n_grams=5, num_buckets=BANDS, hashes_per_bucket=ROWS)
    paths = [str(out / name) for name in ("signatures", "buckets", "clusters", "kept")]
    signature = Signature(paths[0], config=config, language=words_at_white_space())
    signature._hash_func = lambda text: xxhash.xxh64_intdigest(text.encode())  # xxhash 4 wants bytes
    signature.run(reader.run(rank=0, world_size=1), 0, 1)
    for bucket in range(BANDS):
        MinhashDedupBuckets(paths[0], paths[1], config=config).run(None, bucket, BANDS)
    MinhashDedupCluster(paths[1], paths[2], config=config, save_cluster_id=True).run(None, 0, 1)
    filtered = MinhashDedupFilter(paths[2], load_cluster_ids=True)
    with JsonlWriter(paths[3]) as writer:
        for document in filtered.run(reader.run(rank=0, world_size=1), 0, 1):
            writer.write(document)


def _clusters(folder: Path) -> list[set[int]]:
    """Groups out of its files of (document, cluster), both uint32."""
    found = defaultdict(set)
    for path in sorted(folder.glob("*.clusters")):
        for number, cluster in np.fromfile(path, "<u4").reshape(-1, 2).tolist():
            found[cluster].add(number)
    return list(found.values())


def quality(found: list[set[int]], similar: set[tuple[int, int]]) -> dict[str, float]:
    """Recall of similar pairs, and how many texts are in groups of two or more."""
    group_of = {i: number for number, group in enumerate(found) for i in group}
    hit = sum(group_of.get(a, -1) == group_of.get(b, -2) for a, b in similar)
    return {"recall": round(hit / max(1, len(similar)), 4), "pairs": len(similar), "in_groups": len(group_of)}


def similar_pairs(texts: list[str]) -> set[tuple[int, int]]:
    """All pairs of similarity 0.8 or more. Of two such sets the rarest grams (a fifth of them, and one) must share one:
    only pairs that do are compared, so none is missed.
    """
    sets = [set(map(hash, tokens(text))) for text in texts]
    every, counts = np.unique(np.concatenate([np.fromiter(found, np.int64) for found in sets]), return_counts=True)
    rarity = dict(zip(every.tolist(), counts.tolist(), strict=True))
    holders: dict[int, list[int]] = defaultdict(list)
    for number, found in enumerate(sets):
        prefix = len(found) - int(np.ceil(THRESHOLD * len(found))) + 1
        for gram in sorted(found, key=lambda gram: (rarity[gram], gram))[:prefix]:
            holders[gram].append(number)
    pairs = {pair for held in holders.values() for pair in itertools.combinations(held, 2)}
    return {(a, b) for a, b in pairs if len(sets[a] & sets[b]) >= THRESHOLD * len(sets[a] | sets[b])}


def url(number: int) -> str:
    """The address of a text."""
    return f"https://texts.example/{number}"


def write(texts: list[str], folder: Path) -> None:
    """The texts as parquet parts and as JSONL."""
    documents.write([documents.document(url(n), "web", text) for n, text in enumerate(texts)], folder)
    lines = (json.dumps({"text": text, "id": str(number)}) + "\n" for number, text in enumerate(texts))
    (folder / "texts.jsonl").write_text("".join(lines), "utf-8")
    (folder / "count").write_text(str(len(texts)))


def main() -> None:
    chosen = options(__doc__, documents=20_000)
    texts, tenth = with_copies(chosen.documents), with_copies(max(30, chosen.documents // 10), seed=1)
    random.Random(0).shuffle(texts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(texts, folder)
        runs = {
            "openafm, in memory": lambda: near_duplicates(texts, THRESHOLD),
            "rensa, in memory": lambda: with_rensa(texts),
            "rensa rho, in memory": lambda: with_rensa_rho(texts),
            "openafm, on disk": lambda: with_stage(folder),
            "datatrove, on disk": lambda: with_datatrove(folder),
        }
        contestants = {label: lambda run=run: len(texts) / timed(run) for label, run in runs.items()}
        contestants["datasketch, in memory"] = lambda: len(tenth) / timed(lambda: with_datasketch(tenth))
        figures = alternate(contestants, chosen.repeats)
        found = {label: run() for label, run in runs.items()}
    hashing = min(timed(lambda: [word_hashes(texts[a:b]) for a, b in batched(texts)]) for _ in range(3))
    similar = similar_pairs(texts)
    detail = {label: quality(of, similar) for label, of in found.items()}
    for label, row in detail.items():
        print(label, row)
    show(
        "dedup", "documents/s", figures, limit=len(texts) / hashing, limit_is="hashing every word", detail=detail,
        as_json=chosen.json,
    )  # fmt: skip


if __name__ == "__main__":
    main()
