"""Exact and near duplicates across all flows and earlier runs (step `dedup`).

AFM: fuzzy de-duplication by locality-sensitive n-gram hashing (arXiv 2407.21075, section 3.1.1). MinHash signatures of
word 5-grams (Broder 1997) are cut into bands; documents that share a band are candidates (Indyk and Motwani 1998), each
candidate pair is verified by its true Jaccard similarity, and of each connected component one document is kept. What
the step needs of documents lies on disk (`signed`) and is read by ranges of keys (`linking`): memory does not grow with
texts. Links between documents, 16 bytes each, are the only thing that one process holds of all.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openafm.data import linking, paragraphs
from openafm.data.documents import FLOWS, FOLDER, batches, drops_by_reason, parts, pick, write_funnel, write_part
from openafm.data.frames import Drop, each, is_light, with_verdicts
from openafm.data.minhash import BANDS, band_keys, components, pairs, signatures
from openafm.data.ngrams import shingles, spans
from openafm.data.precision import Hit, audit, evidence_hash
from openafm.data.signed import NGRAM, PLANTED, Sign, Signed, text_hash
from openafm.stage import Config, Context, Metrics

STAGE = "dedup"
_AUDITED = 2_000  # copies that are written for reading, evenly over the ids


def near_duplicates(texts: Sequence[str], threshold: float = 0.8) -> list[set[int]]:
    """Groups of indices whose texts are the same or near copies: Jaccard of word 5-grams at least `threshold`.

    Pairs are found with the probability given at minhash.BANDS; groups are connected components, so two ends of a chain
    may be less alike than `threshold`. The order of `texts` makes no difference while no more than 24 share a band.
    """
    hashes = np.array([text_hash(text) for text in texts], np.uint64).reshape(-1, 2)
    copies = linking.equal_texts(hashes, np.arange(len(texts)))
    first = np.setdiff1d(np.arange(len(texts)), copies[:, 0])
    found, offsets = shingles([texts[i] for i in first], NGRAM)
    keys = band_keys(signatures(found, offsets))[np.diff(offsets) > 0]
    candidates = pairs(keys.ravel(), np.repeat(np.flatnonzero(np.diff(offsets)), BANDS))

    def sets(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The shingles of these texts one after the other, uint32, and where each text's begin, `(texts + 1,)`."""
        counts = np.diff(offsets)[numbers]
        return found[spans(offsets[numbers], counts)], np.cumsum([0, *counts])

    edges = first[linking.verified(candidates, sets, threshold)]
    labels = components(len(texts), np.concatenate([copies, edges]))
    groups: dict[int, set[int]] = {}
    for index in np.flatnonzero(np.bincount(labels, minlength=len(texts))[labels] > 1).tolist():
        groups.setdefault(int(labels[index]), set()).add(index)
    return list(groups.values())


class DedupConfig(Config):
    """How alike two documents may be, and what else is deduplicated."""

    threshold: float = 0.75
    """Jaccard similarity of word 5-grams from which on two documents are near copies (as in arXiv 2406.17557)."""
    paragraph_words: int = 0
    """Paragraphs of so many words or more that stand in an earlier document are cut out of prose; 0 leaves them."""
    index: bool = False
    """Keep what a later run needs to drop copies of these documents (`index/`, about half as large as the texts)."""
    against: tuple[str, ...] = ()
    """Artifacts of earlier dedup steps with an index: what is near them is dropped, as they are in already."""

    def files(self) -> list[Path]:
        """The earlier artifacts' descriptions: a change of them makes the step stale."""
        return [Path(folder) / "index" / "index.json" for folder in self.against]


@dataclass(frozen=True)
class Groups:
    """Copies of one another: a row a document, by group, the one to keep first."""

    numbers: np.ndarray
    """(documents,) int64."""
    facts: np.ndarray
    """(documents,) signed.FACTS."""
    starts: np.ndarray
    """(groups + 1,) int64: where each group begins."""

    @property
    def best(self) -> np.ndarray:
        """(documents,) the place of the one that each document's group keeps."""
        return np.repeat(self.starts[:-1], np.diff(self.starts))


def choose(signed: Signed, edges: np.ndarray) -> Groups:
    """Group linked documents; the one to keep is of an earlier run before a new one, of known licence before unknown,
    longer before shorter, then of the smallest id. Groups are in the order of their smallest members.
    """
    numbers = np.unique(edges)
    labels = components(len(numbers), np.searchsorted(numbers, edges))
    facts = signed.facts(numbers)
    order = np.lexsort((numbers, -facts["size"].astype(np.int64), ~facts["licensed"], numbers >= signed.old, labels))
    new = np.flatnonzero(np.diff(labels[order], prepend=-1))
    return Groups(numbers[order], facts[order], np.concatenate([new, [len(order)]]).astype(np.int64))


def _index(config: DedupConfig) -> tuple[list[str], int, np.ndarray]:
    """Signed folders of earlier runs, how many documents they hold, and which of these were dropped."""
    folders, dropped, start = list[str](), [np.zeros(0, np.int64)], 0
    for artifact in config.against:
        path = Path(artifact) / "index"
        if not (path / "index.json").is_file():
            raise ValueError(f"{artifact} holds no index/: give a dedup step's folder, made with `index: true`")
        found = json.loads((path / "index.json").read_text())
        if (found["ngram"], found["bands"]) != (NGRAM, BANDS):
            raise ValueError(f"{artifact}: its index is of other n-grams or bands: run its dedup step again")
        folders += [str(path / part["part"]) for part in found["parts"]]
        dropped.append(np.load(path / "dropped.npy") + start)
        start += sum(part["documents"] for part in found["parts"])
    return folders, start, np.concatenate(dropped)


def _linked(signed: Signed, gone: np.ndarray, threshold: float, context: Context, light: bool) -> np.ndarray:
    """(edges, 2) int64 between copies; `gone` are the documents of earlier runs that are not in."""
    folders = [str(folder) for folder in signed.folders]
    exact, near, alike = (context.scratch / name for name in ("copies", "candidates", "alike"))
    for folder in (exact, near, alike):
        folder.mkdir(exist_ok=True)
    marks, kept_out = np.zeros(len(signed), bool), str(context.scratch / "gone.npy")
    marks[gone] = True
    np.save(kept_out, marks)
    arguments: tuple[Any, ...] = (folders, signed.old, kept_out, str(exact))
    each(linking.Copies, arguments, linking.ranges(len(signed)), context.report, "exact copies", light)
    copies = linking.saved(exact)
    marks[copies[:, 0]] = True
    np.save(kept_out, marks)
    arguments, tasks = (folders, signed.old, kept_out, str(near)), linking.ranges(len(signed) * BANDS)
    each(linking.Candidates, arguments, tasks, context.report, "documents that share a band", light)
    arguments = (folders, signed.old, str(near), threshold, str(alike))
    first = int(np.searchsorted(signed.starts[:-1], signed.old)) if signed.old else 0
    each(linking.Verify, arguments, list(range(first, len(folders))), context.report, "pairs verified", light)
    return np.concatenate([copies, linking.saved(alike)])


class _Write:
    """Writes a part with its verdicts, and says what there is to read of them."""

    def __init__(self, documents: str, out: str, folders: Sequence[str], old: int, scratch: str, least: int) -> None:
        self.documents, self.out, self.least = Path(documents), Path(out), least
        self.signed, self.scratch = Signed(folders, old), Path(scratch)
        self.copies, self.notes = (np.load(self.scratch / f"{name}.npy") for name in ("drops", "notes"))

    def __call__(self, part: int) -> dict[str, Any]:
        low, high = self.signed.starts[part : part + 2].tolist()
        name = f"{self.signed.folders[part].name}.parquet"
        ids = np.load(self.signed.folders[part] / "facts.npy")["id"]
        copies = self.copies[slice(*np.searchsorted(self.copies[:, 0], [low, high]))]
        drops = self._drops(copies, ids[copies[:, 0] - low])
        best = self.notes[slice(*np.searchsorted(self.notes[:, 0], [low, high]))].tolist()
        notes = {ids[number - low].decode(): f"the best of {size} copies" for number, size in best}
        cut = paragraphs.cuts(self.scratch / "repeated", ids, low)
        tables = (
            with_verdicts(paragraphs.without(table, cut, self.least, STAGE), STAGE, drops, {}, notes)
            for table in batches(self.documents / FOLDER / name)
        )
        funnel = write_part(self.out / FOLDER / name, tables)
        read = {ids[number - low].decode() for number in copies[copies[:, 3] > 0, 0]}
        return {"funnel": funnel, "said": {i: [drop.reason, drop.evidence] for i, drop in drops.items() if i in read}}

    def _drops(self, copies: np.ndarray, ids: np.ndarray) -> dict[str, Drop]:
        """{id: why} of rows of `_decide`."""
        drops, urls = dict[str, Drop](), self.signed.urls(copies[:, 1])
        for start in range(0, len(copies), 512):
            some = copies[start : start + 512]
            alike = linking.similarity(some[:, 0], some[:, 1], self.signed.sets)
            for at, (_, best, exact, _) in enumerate(some.tolist(), start):
                url = urls[at] + (" of an earlier run" if best < self.signed.old else "")
                near = Drop("duplicate.near", f"Jaccard {alike[at - start]:.2f} with {url}")
                drops[ids[at].decode()] = Drop("duplicate.exact", f"the text of {url}") if exact else near
        return drops


class _Texts:
    """Reads some documents of a part: {id: (url, flow, text)}."""

    def __init__(self, documents: str) -> None:
        self.documents = Path(documents)

    def __call__(self, task: tuple[str, list[str]]) -> dict[str, list[str]]:
        rows = pick(self.documents / FOLDER / f"{task[0]}.parquet", task[1], ("id", "url", "flow", "text"))
        return {row["id"]: [row["url"], row["flow"], row["text"]] for row in rows}


def _hits(
    pairs: list[tuple[str, str]], said: dict[str, Drop], documents: Path, context: Context, light: bool
) -> list[Hit]:
    """What there is to read of copies and the documents that were kept for them (ids)."""
    wanted: dict[str, set[str]] = {part.stem: set() for part in parts(documents)}
    digits = len(next(iter(wanted)))
    for identity in (identity for pair in pairs for identity in pair):
        wanted[identity[:digits]].add(identity)
    tasks = [(name, sorted(ids)) for name, ids in wanted.items() if ids]
    found = each(_Texts, (str(documents),), tasks, context.report, "copies to read", light) if tasks else []
    rows = {identity: row for part in found for identity, row in part.items()}
    hits = list[Hit]()
    for copy, best in pairs:
        (url, flow, text), other = rows[copy], rows[best][2]
        hits.append(Hit(said[copy].reason, url, evidence_hash(text, other), flow, said[copy].evidence, text[:200]))
    return hits


def _decide(signed: Signed, groups: Groups, context: Context) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Write what the parts are to be told, and groups.jsonl.

    Returns (copies, 4) int64: number, the kept one's number, whether the texts are equal, whether it is to be read by
    people; and the ids of the pairs to be read: a sample of those that are real and of this run.
    """
    best, facts = groups.best, groups.facts
    exact = (facts["text"] == facts["text"][best]).all(axis=1)
    gone = np.flatnonzero((groups.numbers != groups.numbers[best]) & (groups.numbers >= signed.old))
    gone = gone[np.argsort(groups.numbers[gone])]
    real = (facts["planted"] == 0) & (facts["planted"][best] == 0) & (groups.numbers[best] >= signed.old)
    some = gone[real[gone]]
    some = some[np.unique(np.linspace(0, len(some) - 1, min(len(some), _AUDITED)).astype(np.int64))]
    columns = (groups.numbers, groups.numbers[best], exact, np.isin(np.arange(len(best)), some))
    drops = np.stack(columns, axis=1).astype(np.int64)[gone]
    heads = groups.starts[:-1]
    notes = np.stack([groups.numbers[heads], np.diff(groups.starts)], axis=1)
    np.save(context.scratch / "drops.npy", drops)
    np.save(context.scratch / "notes.npy", notes[np.argsort(notes[:, 0])])
    with (context.out / "groups.jsonl").open("w") as file:
        for start, end in zip(groups.starts[:-1].tolist(), groups.starts[1:].tolist(), strict=True):
            ids = groups.facts["id"][start:end].tolist()
            new = np.argsort(groups.numbers[start + 1 : end]) + 1
            dropped = [ids[at].decode() for at in new if groups.numbers[start + at] >= signed.old]
            file.write(json.dumps({"kept": ids[0].decode(), "dropped": dropped}) + "\n")
    return drops, [(facts["id"][at].decode(), facts["id"][best[at]].decode()) for at in some]


def dedup(config: DedupConfig, context: Context, *, documents: Path) -> Metrics:
    """Drop all but the best copy of each group of equal or nearly equal documents, whatever flow or run they are from.

    Writes the documents, `groups.jsonl`: {"kept", "dropped"} (ids) for each group, `audit.jsonl`: real documents that
    went for a real one (see `precision`), and `index/` where it is asked for.
    """
    earlier, old, gone = _index(config)
    there = parts(documents)
    light = is_light(there)
    out = context.scratch / "signed"
    summary = each(Sign, (str(out),), [str(part) for part in there], context.report, "signatures", light)
    folders = [*earlier, *(str(out / part.stem) for part in there)]
    signed = Signed(folders, old)
    groups = choose(signed, _linked(signed, gone, config.threshold, context, light))
    drops, read = _decide(signed, groups, context)
    if config.paragraph_words:
        paragraphs.find(signed, drops[:, 0], documents, config.paragraph_words, context, light)
    arguments = (str(documents), str(context.out), folders, old, str(context.scratch), config.paragraph_words)
    done = each(_Write, arguments, list(range(len(earlier), len(folders))), context.report, "verdicts", light)
    funnel = write_funnel(context.out, (part["funnel"] for part in done))
    if config.index:
        _keep_index(out, summary, drops[:, 0] - old, context.out / "index")
    said = {identity: Drop(*drop) for part in done for identity, drop in part["said"].items()}
    hits = _hits(read, said, documents, context, light)
    dropped = drops_by_reason(funnel, STAGE)
    return _metrics(signed, groups, summary, dropped) | {"precision_on_real": audit(hits, context.out)}


def _metrics(signed: Signed, groups: Groups, summary: list[dict[str, Any]], dropped: dict[str, int]) -> Metrics:
    """Counts of documents, groups and planted copies (a copy itself may be the one that is kept)."""
    total, sizes = len(signed) - signed.old, np.diff(groups.starts)
    flows = (
        np.add.reduceat(_one_hot(groups.facts["flow"], len(FLOWS)), groups.starts[:-1])
        if len(sizes)
        else np.zeros((0, 1))
    )
    there = np.sum([part["planted"] for part in summary], axis=0).tolist()
    found = np.bincount(groups.facts["planted"][groups.numbers >= signed.old], minlength=len(PLANTED)).tolist()
    metrics: Metrics = {
        "headline": f"{total:,} documents, " + ", ".join(f"{reason} {n}" for reason, n in dropped.items()),
        "documents": total,
        "dropped": dropped,
        "groups": len(sizes),
        "largest_group": int(sizes.max(initial=0)),
        "across_flows": int(((flows > 0).sum(axis=1) > 1).sum()),
        "planted": {
            kind: {"planted": there[at], "found": found[at]} for at, kind in enumerate(PLANTED) if kind and there[at]
        },
    }
    return metrics | ({"earlier_documents": signed.old} if signed.old else {})


def _one_hot(values: np.ndarray, size: int) -> np.ndarray:
    equal: np.ndarray = values[:, None] == np.arange(size)
    return equal.astype(np.int64)


def _keep_index(signed: Path, summary: list[dict[str, Any]], dropped: np.ndarray, out: Path) -> None:
    signed.rename(out)
    np.save(out / "dropped.npy", dropped)
    (out / "index.json").write_text(json.dumps({"ngram": NGRAM, "bands": BANDS, "parts": summary}, indent=1) + "\n")
