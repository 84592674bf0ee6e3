"""The documents that every data step reads and writes: schema, files, funnel, and a document's fate.

A row is a document. Filters judge the rows that are still kept and never delete any, so the last table of a run still
holds every document with the filter, reason and evidence that dropped it, and in `verdicts` what every filter before
said of it, in order: nothing is overwritten. `openafm why URL` prints that fate.

On disk they are parquet parts: `documents/3f.parquet` holds the documents whose ids begin with 3f, sorted. Ids are
hashes, so parts are of one size, an id names its part, and the parts in the order of their names are all documents in
the order of their ids. Most steps turn each part into a part of the same name. Parts are read and written in groups of
rows of bounded size: no step holds all texts.
"""

import hashlib
import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

FLOWS = ("web", "code", "math", "licensed", "public")
FOLDER = "documents"
FUNNEL = "funnel.json"
PART_BYTES = 256_000_000
"""Text in a part, at most, on average: 16 parts hold 4 GB, 256 hold 64 GB, 65,536 hold 16 TB."""
GROUP_ROWS, GROUP_BYTES = 1024, 16_000_000
"""Documents and bytes of text that are read at once."""

Row = dict[str, Any]

VERDICT = pa.struct([(name, pa.string()) for name in ("stage", "verdict", "reason", "evidence")])
"""What one filter said: "keep", "redact" or "drop", a machine-readable reason, a short evidence for people."""
_TEXT_COLUMNS = ("id", "url", "flow", "source", "licence", "title", "text", "code_language", "language")
SCHEMA = pa.schema(
    [(name, pa.large_string() if name == "text" else pa.string()) for name in _TEXT_COLUMNS]
    + [("bytes", pa.int64())]
    + [(name, pa.string()) for name in ("verdict", "stage", "reason", "evidence")]
    + [("quality", pa.float64()), ("planted", pa.string()), ("verdicts", pa.list_(VERDICT))]
)


def document_id(url: str) -> str:
    """Return the first 16 hexadecimal digits of the URL's SHA-256."""
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def document(url: str, flow: str, text: str, **columns: Any) -> Row:
    """Return a kept row; `columns` fills the rest of the schema (source, licence, title, planted, ...)."""
    row: Row = dict.fromkeys(SCHEMA.names, "") | {"quality": -1.0, "planted": None, "verdict": "keep", "verdicts": []}
    row |= {"id": document_id(url), "url": url, "flow": flow} | columns
    return with_text(row, text)


def with_text(row: Row, text: str) -> Row:
    """Return `row` with a new text (lone surrogates replaced, as UTF-8 cannot hold them) and its size in bytes."""
    encoded = text.encode("utf-8", "replace")
    return row | {"text": encoded.decode(), "bytes": len(encoded)}


def judged(row: Row, stage: str, verdict: str, reason: str = "", evidence: str = "") -> Row:
    """Return `row` with one more verdict: "keep", or "redact" for text that was replaced."""
    said = {"stage": stage, "verdict": verdict, "reason": reason, "evidence": evidence}
    return row | {"verdicts": [*row["verdicts"], said]}


def drop(row: Row, stage: str, reason: str, evidence: str = "") -> Row:
    """Return `row` as dropped by the filter `stage` for a machine-readable `reason`, with a short human `evidence`."""
    row = judged(row, stage, "drop", reason, evidence)
    return row | {"verdict": "drop", "stage": stage, "reason": reason, "evidence": evidence}


# ---------------------------------------------------------------- reading


def parts(folder: Path) -> list[Path]:
    """Return an artifact's parts in the order of their ids. Raises ValueError when there are none."""
    found = sorted((folder / FOLDER).glob("*.parquet"))
    if not found:
        raise ValueError(f"{folder} holds no {FOLDER}/*.parquet: give the folder that a data step has written")
    return found


def batches(part: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Read one part in bounded tables, sorted by id; `columns` names those that are wanted, in their order."""
    names = list(columns or SCHEMA.names)
    schema = pa.schema([SCHEMA.field(name) for name in names])
    with pq.ParquetFile(part) as file:
        if file.schema_arrow.names != SCHEMA.names:
            raise ValueError(
                f"{part} has the columns {file.schema_arrow.names}, not {SCHEMA.names}: run its step again"
            )
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=names).select(names).cast(schema)


def read(folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read all documents of an artifact at once, sorted by id: for a few columns, or for what fits into memory."""
    schema = pa.schema([SCHEMA.field(name) for name in columns or SCHEMA.names])
    return pa.concat_tables([schema.empty_table(), *(t for part in parts(folder) for t in batches(part, columns))])


def rows(folder: Path, verdict: str = "keep") -> Iterator[Row]:
    """Yield the documents with this verdict as dictionaries, sorted by id."""
    for part in parts(folder):
        for table in batches(part):
            yield from table.filter(pc.equal(table["verdict"], verdict)).to_pylist()


# ---------------------------------------------------------------- writing


def digits_of(size: int) -> int:
    """How many hexadecimal digits name a part when there are `size` bytes of text in all."""
    digits = 1
    while size > PART_BYTES * 16**digits:
        digits += 1
    return digits


def cut(table: pa.Table, digits: int) -> list[tuple[str, pa.Table]]:
    """Cut a table that is sorted by id into named parts: "0" to "f", or "00" to "ff"."""
    ids, names = table["id"].to_pylist(), part_names(digits)
    bounds = pairwise([*(bisect_left(ids, name) for name in names), len(ids)])
    return [(name, table.slice(start, end - start)) for name, (start, end) in zip(names, bounds, strict=True)]


def part_names(digits: int) -> list[str]:
    """Names of all parts, in order."""
    return [f"{number:0{digits}x}" for number in range(16**digits)]


def write_part(path: Path, tables: Iterable[pa.Table]) -> list[Row]:
    """Write a part from tables that follow one another by id; return its funnel. A part is whole or absent.

    Raises ValueError when two rows share an id, since a document's fate would no longer be one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, stages, last = path.with_suffix(".partial"), list[list[Row]](), ""
    with pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
        for table in tables:
            table = table.select(SCHEMA.names).cast(SCHEMA).combine_chunks()
            last = _check_order(table["id"].to_pylist(), last)
            for start, end in _groups(table["bytes"].to_numpy()):
                writer.write_table(table.slice(start, end - start), row_group_size=end - start)
            stages.append(funnel(table))
    partial.replace(path)
    return add_funnels(stages)


def _check_order(ids: list[str], last: str) -> str:
    """Return the last of the ids; they must ascend from `last` on."""
    for before, after in pairwise([last, *ids]):
        if before == after:
            raise ValueError(f"the document {after} is in the table twice: URLs must differ")
        assert before < after, f"{before} stands before {after}"
    return ids[-1] if ids else last


def _groups(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cut rows (their sizes in bytes) into groups: (first, behind the last)."""
    start, ends = 0, np.cumsum(sizes)
    while start < len(sizes):
        before = ends[start - 1] if start else 0
        fits = int(np.searchsorted(ends, before + GROUP_BYTES, side="right"))
        end = min(max(fits, start + 1), start + GROUP_ROWS, len(sizes))
        yield start, end
        start = end


def write(table: pa.Table | Iterable[Row], folder: Path) -> list[Row]:
    """Write documents that fit into memory, in any order: equal rows give equal bytes. Returns the funnel."""
    if not isinstance(table, pa.Table):
        table = pa.Table.from_pylist(list(table), schema=SCHEMA)
    table = table.select(SCHEMA.names).cast(SCHEMA).sort_by("id").combine_chunks()
    stages = []
    for name, part in cut(table, digits_of(pc.sum(table["bytes"]).as_py() or 0)):
        stages.append(write_part(folder / FOLDER / f"{name}.parquet", [part]))
    return write_funnel(folder, stages)


def write_funnel(folder: Path, stages: Iterable[list[Row]]) -> list[Row]:
    """Write `funnel.json`, the sum of the parts' funnels, and return it."""
    total = add_funnels(stages)
    (folder / FUNNEL).write_text(json.dumps(total, indent=1) + "\n")
    return total


# ---------------------------------------------------------------- counting


def funnel(table: pa.Table) -> list[Row]:
    """Count documents and bytes by deciding stage, reason and flow; kept documents have stage "" and reason "kept"."""
    counts: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    columns = (table[name].to_pylist() for name in ("verdict", "stage", "reason", "flow", "bytes", "planted"))
    for verdict, stage, reason, flow, size, planted in zip(*columns, strict=True):
        count = counts[(stage, reason, flow) if verdict == "drop" else ("", "kept", flow)]
        count[0] += 1
        count[1] += size
        count[2] += planted is not None
    return _as_funnel(counts)


def add_funnels(stages: Iterable[list[Row]]) -> list[Row]:
    """Sum the funnels of parts."""
    counts: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for entry in (entry for part in stages for entry in part):
        count = counts[entry["stage"], entry["reason"], entry["flow"]]
        for at, name in enumerate(("documents", "bytes", "planted")):
            count[at] += entry[name]
    return _as_funnel(counts)


def _as_funnel(counts: Mapping[tuple[str, str, str], list[int]]) -> list[Row]:
    return [
        {"stage": stage, "reason": reason, "flow": flow, "documents": n, "bytes": size}
        | {"planted": planted, "real": n - planted}
        for (stage, reason, flow), (n, size, planted) in sorted(counts.items())
    ]


def drops_by_reason(stages: list[Row], stage: str) -> dict[str, int]:
    """Sum a funnel's dropped documents of one filter over the flows: {reason: documents}."""
    counts: dict[str, int] = defaultdict(int)
    for entry in stages:
        if entry["stage"] == stage:
            counts[entry["reason"]] += entry["documents"]
    return dict(sorted(counts.items()))


def recall(table: pa.Table, caught: Mapping[str, tuple[str, ...]]) -> dict[str, dict[str, float]]:
    """Measure each planted kind's share that was dropped for one of the reason prefixes in `caught[kind]`.

    `table` has the columns planted and reason. Only planted marks are counted: {"planted", "caught", "gone" (dropped
    for another reason), "missed", "recall"} a kind.
    """
    totals = {kind: {"planted": 0, "caught": 0, "gone": 0, "missed": 0} for kind in sorted(caught)}
    for kind, reason in zip(table["planted"].to_pylist(), table["reason"].to_pylist(), strict=True):
        if kind in totals:
            totals[kind]["planted"] += 1
            totals[kind]["caught" if reason.startswith(caught[kind]) else "gone" if reason else "missed"] += 1
    return {
        kind: counts | {"recall": counts["caught"] / n} for kind, counts in totals.items() if (n := counts["planted"])
    }


# ---------------------------------------------------------------- a document's fate


@dataclass(frozen=True)
class Fate:
    """A document and every verdict on it, in the order in which the filters spoke."""

    title: str
    bytes: int
    verdicts: tuple[dict[str, str], ...]


def fate(url: str, run: Path) -> Fate:
    """Return what a run's filters said of a document: from the table that holds most verdicts on it.

    Raises ValueError when no table of the run knows the URL.
    """
    found, identity = list[Fate](), document_id(url)
    for folder in sorted(run.glob(f"*/{FOLDER}")):
        for path in folder.glob("*.parquet"):
            if identity.startswith(path.stem):
                wanted = [("id", "=", identity)]
                rows = pq.read_table(path, columns=["title", "bytes", "verdicts"], filters=wanted).to_pylist()
                found += [Fate(row["title"], row["bytes"], tuple(row["verdicts"])) for row in rows]
    if not found:
        raise ValueError(f"{run} has no document with the URL {url}: see the URLs in {run}/*/{FOLDER}")
    return max(found, key=lambda fate: len(fate.verdicts))


_SAID = {"keep": "kept", "redact": "redacted", "drop": "dropped"}


def why(url: str, run: Path) -> str:
    """Tell a document's fate in a run as a few lines of text: every verdict with its evidence, in order."""
    found = fate(url, run)
    lines = [url, (f'  "{found.title}", ' if found.title else "  ") + f"{found.bytes:,} bytes of text"]
    for said in found.verdicts:
        reason = f": {said['reason']}" if said["reason"] else ""
        evidence = f" ({said['evidence']})" if said["evidence"] else ""
        lines.append(f"  {said['stage']}: {_SAID[said['verdict']]}{reason}{evidence}")
    return "\n".join(lines)
