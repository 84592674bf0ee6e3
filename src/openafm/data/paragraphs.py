"""Paragraphs that stand in an earlier document are cut out (step `dedup` with `paragraph_words`).

Notices, menus and quotations that pages have in common say nothing a second time. Paragraphs (between blank lines) are
compared by the hash of their words, as in CCNet (Wenzek et al. 2019); the first document by id keeps its own.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from openafm.data.documents import FOLDER, SCHEMA, Row, batches, drop, judged, with_text
from openafm.data.frames import each
from openafm.data.linking import ranges
from openafm.data.ngrams import words
from openafm.data.signed import Signed, write_sorted
from openafm.stage import Context

PROSE = ("web", "licensed", "public")
_GAP = re.compile(r"(\n\s*\n)")
_LEFT = 0.2  # a document that loses more than the rest of its words is dropped


def hashes(text: str, least: int) -> list[int]:
    """A number for each paragraph of at least `least` words, 0 for the gaps and the shorter ones, in order."""
    found = []
    for piece in _GAP.split(text):
        listed = words(piece)
        found.append(xxhash.xxh3_64_intdigest(" ".join(listed).encode("utf-8")) if len(listed) >= least else 0)
    return found


class _Hash:
    """Writes the paragraphs of a part beside what is signed of it: paragraphs.bin and paragraphs_of.bin."""

    def __init__(self, folders: Sequence[str], old: int, dropped: str, documents: str, least: int) -> None:
        self.signed, self.gone = Signed(folders, old), np.load(dropped)
        self.documents, self.least = Path(documents), least

    def __call__(self, part: int) -> int:
        folder, low = self.signed.folders[part], int(self.signed.starts[part])
        keys, owners, number = list[int](), list[int](), -1
        for table in batches(self.documents / FOLDER / f"{folder.name}.parquet", ("flow", "verdict", "text")):
            for row in table.filter(pc.equal(table["verdict"], "keep")).to_pylist():
                number += 1
                if row["flow"] in PROSE and not self.gone[low + number]:
                    mine = sorted(set(hashes(row["text"], self.least)) - {0})
                    keys += mine
                    owners += [number] * len(mine)
        write_sorted(folder / "paragraphs", np.array(keys, np.uint64), np.array(owners, np.uint32))
        (folder / "paragraph_words").write_text(str(self.least))
        return len(keys)


class _Repeated:
    """Finds the paragraphs of a range that more than one document has: (number, paragraph), all but the first's."""

    def __init__(self, folders: Sequence[str], old: int, out: str) -> None:
        self.signed, self.out = Signed(folders, old), Path(out)

    def __call__(self, task: tuple[int, int]) -> int:
        keys, numbers = self.signed.slices("paragraphs", *task)
        order = np.lexsort((numbers, keys))
        keys, numbers = keys[order], numbers[order]
        again = np.flatnonzero(keys[1:] == keys[:-1]) + 1
        again = again[numbers[again] >= self.signed.old]
        found = np.stack([numbers[again].astype(np.uint64), keys[again]], axis=1)
        np.save(self.out / f"{task[0]:016x}.npy", found[np.lexsort((found[:, 1], found[:, 0]))])
        return len(found)


def find(signed: Signed, dropped: np.ndarray, documents: Path, least: int, context: Context, light: bool) -> None:
    """Write into `scratch/repeated` which paragraphs are cut from which documents; `dropped` lose nothing more."""
    out = context.scratch / "repeated"
    out.mkdir(exist_ok=True)
    gone = np.zeros(len(signed), bool)
    gone[dropped] = True
    np.save(context.scratch / "dropped.npy", gone)
    folders, first = [str(folder) for folder in signed.folders], int(np.searchsorted(signed.starts[:-1], signed.old))
    for folder in signed.folders[:first]:
        mark = folder / "paragraph_words"
        if not mark.is_file() or int(mark.read_text()) != least:
            raise ValueError(
                f"{folder.parent} was made without `paragraph_words: {least}`: take the same for both runs"
            )
    arguments = (folders, signed.old, str(context.scratch / "dropped.npy"), str(documents), least)
    counts = each(_Hash, arguments, list(range(first, len(folders))), context.report, "paragraphs", light)
    each(_Repeated, (folders, signed.old, str(out)), ranges(sum(counts)), context.report, "repeated paragraphs", light)


def cuts(folder: Path, ids: np.ndarray, low: int) -> dict[str, set[int]]:
    """{id: paragraphs to cut} of a part whose documents are numbered from `low`."""
    found: dict[str, set[int]] = {}
    for path in sorted(folder.glob("*.npy")):
        stored = np.load(path, mmap_mode="r")
        start, end = np.searchsorted(stored[:, 0], np.array([low, low + len(ids)], np.uint64))
        for number, key in stored[start:end].tolist():
            found.setdefault(ids[number - low].decode(), set()).add(key)
    return found


def without(table: pa.Table, cut: Mapping[str, set[int]], least: int, stage: str) -> pa.Table:
    """The documents without the paragraphs to cut, which a verdict counts; what keeps hardly a word is dropped."""
    if not any(identity in cut for identity in table["id"].to_pylist()):
        return table
    rows = [_cut(row, cut[row["id"]], least, stage) if row["id"] in cut else row for row in table.to_pylist()]
    return pa.Table.from_pylist(rows, SCHEMA)


def _cut(row: Row, keys: set[int], least: int, stage: str) -> Row:
    pieces, marks = _GAP.split(row["text"]), hashes(row["text"], least)
    left = [piece for piece, mark in zip(pieces, marks, strict=True) if mark not in keys]
    text = _GAP.sub("\n\n", "".join(left)).strip("\n")
    said = f"{sum(mark in keys for mark in marks)} of {len(pieces) // 2 + 1} paragraphs stand in other documents"
    if len(words(text)) < _LEFT * len(words(row["text"])):
        return drop(row, stage, "duplicate.paragraphs", said)
    return with_text(judged(row, stage, "redact", "duplicate.paragraphs", said), text)
