"""Rejected documents for people to read, drawn from a run's last table (`openafm data audit RUN`).

The same seed draws the same documents, evenly over the reasons asked for; personal data is masked in what is shown.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from heapq import nsmallest
from itertools import islice, zip_longest
from pathlib import Path
from typing import TypeVar

import xxhash

from openafm.data import documents, pii
from openafm.data.documents import Row

T = TypeVar("T")
SHOWN = 400
"""Characters of a document's beginning that are shown."""


@dataclass(frozen=True)
class Reject:
    """A dropped document: where it is from, which filter dropped it and why, and how it begins."""

    url: str
    flow: str
    stage: str
    reason: str
    evidence: str
    text: str

    def __str__(self) -> str:
        shown = "\n".join(f"  | {line}" for line in self.text.splitlines() if line.strip())
        return f"{self.url} ({self.flow})\n  {self.stage}: {self.reason} ({self.evidence})\n{shown or '  | (no text)'}"


def last_table(run: Path) -> Path:
    """The artifact of the last filter that has run: of those with documents the one with most verdicts of filters.

    Raises ValueError where the run has none.
    """
    found: list[tuple[int, int, Path]] = []
    for path in sorted(run.glob("[!.]*/funnel.json")):
        if any(path.parent.glob("documents*")):
            dropped = [entry for entry in json.loads(path.read_text()) if entry["stage"]]
            found.append((len({e["stage"] for e in dropped}), sum(e["documents"] for e in dropped), path.parent))
    if not found:
        raise ValueError(f"{run} holds no documents: `openafm run nano --until decontaminate` makes some")
    return max(found)[2]


def rejects(run: Path, stage: str = "", reason: str = "", count: int = 20, seed: int = 0) -> list[Reject]:
    """At most `count` rejects of a filter and of reasons that begin with `reason`, an even share of each reason.

    Raises ValueError, naming the filters and reasons that there are, where nothing matches.
    """
    table = last_table(run)
    by_reason: dict[tuple[str, str], list[Row]] = defaultdict(list)
    there = set()
    for row in documents.rows(table, "drop"):
        there.add(f"{row['stage']}: {row['reason']}")
        if stage in ("", row["stage"]) and row["reason"].startswith(reason):
            kept = by_reason[row["stage"], row["reason"]]
            kept.append(row)
            if len(kept) >= 4 * count + 64:  # memory stays small, however many there are
                kept[:] = nsmallest(count, kept, key=lambda row: _place(seed, row))
    if not by_reason:
        raise ValueError(f"{table} dropped nothing by this; there are {', '.join(sorted(there)) or 'no drops at all'}")
    chosen = evenly((found for _, found in sorted(by_reason.items())), count, lambda row: _place(seed, row))
    return [_shown(row) for row in sorted(chosen, key=lambda row: (row["stage"], row["reason"], row["url"]))]


def evenly(groups: Iterable[list[T]], count: int, place: Callable[[T], int]) -> list[T]:
    """At most `count` items, an even share of each group, those of the lowest `place` first."""
    drawn = [nsmallest(count, found, key=place) for found in groups]
    turns = (each for turn in zip_longest(*drawn) for each in turn if each is not None)
    return list(islice(turns, count))


def _place(seed: int, row: Row) -> int:
    return xxhash.xxh3_64_intdigest(f"{seed}/audit/{row['id']}".encode())


def _shown(row: Row) -> Reject:
    text = row["text"][: 2 * SHOWN]
    masked = pii.without(text)[:SHOWN]
    return Reject(row["url"], row["flow"], row["stage"], row["reason"], row["evidence"], masked)
