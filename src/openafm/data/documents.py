"""The document table that every data step reads and writes: schema, files, funnel, and a document's fate.

A row is a document. Filters judge the rows that are still kept and never delete any, so the last table of a run still
holds every document with the filter, reason and evidence that dropped it, and in `verdicts` what every filter before
said of it, in order: nothing is overwritten. `openafm why URL` prints that fate.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

FLOWS = ("web", "code", "math", "licensed", "public")
FILE = "documents.parquet"
ROWS_PER_GROUP = 4096

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


def read(folder: Path) -> pa.Table:
    """Read the documents of an artifact; rows are sorted by id."""
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no {FILE}: give the folder that a data step has written")
    table = pq.read_table(path)
    if table.schema.names != SCHEMA.names:
        raise ValueError(f"{path} has the columns {table.schema.names}, not {SCHEMA.names}: run its step again")
    return table.cast(SCHEMA)


def rows(folder: Path, verdict: str = "keep") -> list[Row]:
    """Read the documents with this verdict as dictionaries, sorted by id."""
    table = read(folder)
    return table.filter(pa.compute.equal(table["verdict"], verdict)).to_pylist()


def write(table: pa.Table | Iterable[Row], folder: Path) -> list[Row]:
    """Write `documents.parquet` (sorted by id, equal rows give equal bytes) and `funnel.json`; return the funnel.

    Raises ValueError when two rows share an id, since a document's fate would no longer be one.
    """
    if not isinstance(table, pa.Table):
        table = pa.Table.from_pylist(list(table), schema=SCHEMA)
    table = table.select(SCHEMA.names).cast(SCHEMA).sort_by("id").combine_chunks()
    if len(table) and len(table["id"].unique()) != len(table):
        counts = table["id"].value_counts().to_pylist()
        twice = next(entry["values"] for entry in counts if entry["counts"] > 1)
        raise ValueError(f"the document {twice} is in the table twice: URLs must differ")
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        table.replace_schema_metadata(None), folder / FILE, compression="zstd", row_group_size=ROWS_PER_GROUP
    )
    stages = funnel(table)
    (folder / "funnel.json").write_text(json.dumps(stages, indent=1) + "\n")
    return stages


def funnel(table: pa.Table) -> list[Row]:
    """Count documents and bytes by deciding stage, reason and flow; kept documents have stage "" and reason "kept"."""
    counts: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    columns = (table[name].to_pylist() for name in ("verdict", "stage", "reason", "flow", "bytes", "planted"))
    for verdict, stage, reason, flow, size, planted in zip(*columns, strict=True):
        count = counts[(stage, reason, flow) if verdict == "drop" else ("", "kept", flow)]
        count[0] += 1
        count[1] += size
        count[2] += planted is not None
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

    Only planted marks are counted: {"planted", "caught", "gone" (dropped for another reason), "missed", "recall"} a
    kind.
    """
    totals = {kind: {"planted": 0, "caught": 0, "gone": 0, "missed": 0} for kind in sorted(caught)}
    for kind, reason in zip(table["planted"].to_pylist(), table["reason"].to_pylist(), strict=True):
        if kind in totals:
            totals[kind]["planted"] += 1
            totals[kind]["caught" if reason.startswith(caught[kind]) else "gone" if reason else "missed"] += 1
    return {
        kind: counts | {"recall": counts["caught"] / n} for kind, counts in totals.items() if (n := counts["planted"])
    }


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
    found: list[Fate] = []
    for path in sorted(run.glob(f"*/{FILE}")):
        if "verdicts" in pq.read_schema(path).names:  # tables of older code may lie about until their step runs again
            rows = pq.read_table(path, columns=["title", "bytes", "verdicts"], filters=[("id", "=", document_id(url))])
            found += [Fate(row["title"], row["bytes"], tuple(row["verdicts"])) for row in rows.to_pylist()]
    if not found:
        raise ValueError(f"{run} has no document with the URL {url}: see the URLs in {run}/*/{FILE}")
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
