"""Document tables as Daft frames: one program for the native runner and for a Ray cluster.

The filters that look at all documents together (dedup, quality, decontamination) and the token shards read and join
their tables here. Rows are sorted by id before anything is written, so the runner's order never shows.
"""

import atexit
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("DO_NOT_TRACK", "1")  # Daft reports usage unless told otherwise before its import
os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")

import daft
import pyarrow as pa
from daft.functions import coalesce

from openafm.data.documents import FILE, SCHEMA, Row, write

# Daft's threads still let go of Python objects when a query has returned; an interpreter that ends in that very moment
# aborts ("PyGILState_Release", seen in one of ten short scripts with Daft 0.7.26). A pause lets them finish.
atexit.register(time.sleep, 0.1)

_JUDGED = ("verdict", "stage", "reason", "evidence", "quality")


@dataclass(frozen=True)
class Drop:
    """Why a filter drops a document: a machine-readable reason and a short text for people."""

    reason: str
    evidence: str


def documents(folder: Path) -> daft.DataFrame:
    """All documents of an artifact. Raises ValueError when the folder holds none."""
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no {FILE}: give the folder that a data step has written")
    return daft.read_parquet(str(path))


def kept(folder: Path, *columns: str) -> daft.DataFrame:
    """The given columns of the documents that no filter has dropped so far."""
    return documents(folder).where("verdict = 'keep'").select(*columns)


def write_verdicts(
    folder: Path,
    out: Path,
    stage: str,
    drops: Mapping[str, Drop],
    quality: Mapping[str, float] | None = None,
    notes: Mapping[str, str] | None = None,
) -> tuple[pa.Table, list[Row]]:
    """Write the documents of `folder` to `out` with the filter's verdict on each that was still kept.

    `drops` and `quality` (scores) are by id, `notes` are evidence on documents that stay. Returns table and funnel.
    """
    known = quality or {}
    ids = sorted({*drops, *known})
    dropped = [drops.get(i) for i in ids]
    verdicts = {
        "verdict": ["drop" if drop else None for drop in dropped],
        "stage": [stage if drop else None for drop in dropped],
        "reason": [drop.reason if drop else None for drop in dropped],
        "evidence": [drop.evidence if drop else None for drop in dropped],
        "quality": [known.get(i) for i in ids],
    }
    fields = [("id", pa.string()), *((f"new_{name}", SCHEMA.field(name).type) for name in _JUDGED)]
    new = pa.table([ids, *verdicts.values()], schema=pa.schema(fields))
    frame = documents(folder).join(daft.from_arrow(new), on="id", how="left")
    frame = frame.with_columns({name: coalesce(daft.col(f"new_{name}"), daft.col(name)) for name in _JUDGED})
    table = frame.select(*SCHEMA.names).sort("id").to_arrow().cast(SCHEMA)
    table = _with_verdicts(table, stage, drops, notes or {})
    return table, write(table, out)


def _with_verdicts(table: pa.Table, stage: str, drops: Mapping[str, Drop], notes: Mapping[str, str]) -> pa.Table:
    """The table with this filter's verdict behind the earlier ones of every document that it was shown."""
    columns = (table[name].to_pylist() for name in ("id", "verdict", "verdicts"))
    said = []
    for document, verdict, earlier in zip(*columns, strict=True):
        if drop := drops.get(document):
            earlier.append({"stage": stage, "verdict": "drop", "reason": drop.reason, "evidence": drop.evidence})
        elif verdict == "keep":
            note = notes.get(document, "")
            earlier.append({"stage": stage, "verdict": "keep", "reason": "", "evidence": note})
        said.append(earlier)
    at = SCHEMA.get_field_index("verdicts")
    return table.set_column(at, SCHEMA.field(at), pa.array(said, SCHEMA.field(at).type))
