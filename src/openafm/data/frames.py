"""Documents as Daft frames, and work on their parts: one program for the native runner and for a Ray cluster.

A step is work on parts: `each` hands every part to a process of this machine, or of the cluster's, which reads it in
bounded batches, writes the part of the same name and returns what it counted. A part is whole or absent, so work that
died with its process is done again. Parts do not depend on the number of processes: the runner never shows.
"""

import atexit
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("DO_NOT_TRACK", "1")  # Daft reports usage unless told otherwise before its import
os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")

import daft as daft  # other modules import it from here, where its reports are off
import pyarrow as pa

from openafm.data.documents import FOLDER, SCHEMA, Row, batches, parts, write_funnel, write_part
from openafm.data.parallel import died, on_cluster, workers

# Daft's threads still let go of Python objects when a query has returned; an interpreter that ends in that very moment
# aborts ("PyGILState_Release", seen in one of ten short scripts with Daft 0.7.26). A pause lets them finish.
atexit.register(time.sleep, 0.1)

Report = Callable[[str, float, float | None], None]
_ATTEMPTS = 3


@dataclass(frozen=True)
class Drop:
    """Why a filter drops a document: a machine-readable reason and a short text for people."""

    reason: str
    evidence: str


def documents(folder: Path) -> daft.DataFrame:
    """All documents of an artifact. Raises ValueError when the folder holds none."""
    return daft.read_parquet([str(part) for part in parts(folder)])


def kept(folder: Path, *columns: str) -> daft.DataFrame:
    """The given columns of the documents that no filter has dropped so far."""
    return documents(folder).where("verdict = 'keep'").select(*columns)


class _Worker:
    """One process: `work` is made once, and does one task after the other."""

    def __init__(self, make: Callable[..., Any], arguments: Sequence[Any]) -> None:
        self.work = make(*arguments)

    @daft.method.batch(return_dtype=daft.DataType.string(), batch_size=1)
    def run(self, tasks: daft.Series) -> list[str]:
        """Do each task of a batch; tasks and what comes of them are JSON."""
        return [json.dumps(self.work(json.loads(task))) for task in tasks.to_pylist()]


LIGHT_BYTES = 30_000_000
"""Of compressed parts: less is done before other processes have started."""


def is_light(there: Sequence[Path]) -> bool:
    """Whether work on these parts is done before other processes have started."""
    return sum(part.stat().st_size for part in there) < LIGHT_BYTES


def each(
    make: Callable[..., Any],
    arguments: Sequence[Any],
    tasks: Sequence[Any],
    report: Report,
    label: str,
    light: bool = False,
) -> list[Any]:
    """`make(*arguments)(task)` for every task (plain JSON, as are the results), in processes; results in their order.

    `make` and `arguments` travel to the processes, so they are a class of a module and paths, texts and numbers.
    `light` work, and all of it on one core, is done in this process: others take seconds to start. Daft starts a
    process of the cluster again that died; should it die itself, what is not done is asked for again.
    """
    if not on_cluster() and (light or workers() == 1):
        work = make(*arguments)
        return [work(task) for task in _reported(tasks, report, label)]
    results: dict[int, Any] = {}
    for attempt in range(_ATTEMPTS):
        try:
            for at, result in _spread(make, arguments, [(at, t) for at, t in enumerate(tasks) if at not in results]):
                results[at] = result
                report(label, len(results), len(tasks))
            break
        except Exception as error:
            if attempt == _ATTEMPTS - 1 or not died(error):
                raise
    return [results[at] for at in range(len(tasks))]


def _spread(
    make: Callable[..., Any], arguments: Sequence[Any], tasks: Sequence[tuple[int, Any]]
) -> Iterator[tuple[int, Any]]:
    """The results of numbered tasks as they come."""
    worker = daft.cls(_Worker, use_process=True, max_concurrency=max(1, min(workers(), len(tasks))))(make, arguments)
    columns = {"at": [at for at, _ in tasks], "task": [json.dumps(task) for _, task in tasks]}
    frame = daft.from_pydict(columns).select("at", worker.run(daft.col("task")).alias("result"))
    for row in frame.iter_rows():
        yield row["at"], json.loads(row["result"])


def _reported(tasks: Sequence[Any], report: Report, label: str) -> Iterator[Any]:
    for done, task in enumerate(tasks):
        report(label, done, len(tasks))
        yield task
    report(label, len(tasks), len(tasks))


class _Rewrite:
    """Judges the rows of a part: `judge` is a list of rows in, a list of rows out."""

    def __init__(self, make: Callable[..., Any], arguments: Sequence[Any], out: str) -> None:
        self.judge, self.out = make(*arguments), Path(out)

    def __call__(self, part: str) -> list[Row]:
        source = Path(part)
        tables = (pa.Table.from_pylist(self.judge(table.to_pylist()), SCHEMA) for table in batches(source))
        return write_part(self.out / FOLDER / source.name, tables)


def rewrite(
    folder: Path, out: Path, make: Callable[..., Any], arguments: Sequence[Any], report: Report, label: str
) -> list[Row]:
    """Write the documents of `folder` to `out` as `make(*arguments)` judges them, in processes; return the funnel."""
    tasks = [str(part) for part in parts(folder)]
    return write_funnel(out, each(_Rewrite, (make, arguments, str(out)), tasks, report, label))


def write_verdicts(
    folder: Path,
    out: Path,
    stage: str,
    drops: Mapping[str, Drop],
    quality: Mapping[str, float] | None = None,
    notes: Mapping[str, str] | None = None,
) -> list[Row]:
    """Write the documents of `folder` to `out` with the filter's verdict on each that was still kept.

    `drops` and `quality` (scores) are by id, `notes` are evidence on documents that stay. Returns the funnel.
    """

    def write(part: Path) -> list[Row]:
        """Write one part with its verdicts; its funnel."""
        tables = (with_verdicts(table, stage, drops, quality or {}, notes or {}) for table in batches(part))
        return write_part(out / FOLDER / part.name, tables)

    with ThreadPoolExecutor(workers()) as pool:  # most of it is reading and compressing, outside of Python's lock
        return write_funnel(out, pool.map(write, parts(folder)))


def with_verdicts(
    table: pa.Table, stage: str, drops: Mapping[str, Drop], quality: Mapping[str, float], notes: Mapping[str, str]
) -> pa.Table:
    """The table with this filter's verdict behind the earlier ones of every document that it was shown."""
    names = ("id", "verdict", "stage", "reason", "evidence", "quality", "verdicts")
    new: dict[str, list[Any]] = {name: table[name].to_pylist() for name in names}
    for at, (document, verdict) in enumerate(zip(new["id"], new["verdict"], strict=True)):
        new["quality"][at] = quality.get(document, new["quality"][at])
        if drop := drops.get(document):
            said = {"stage": stage, "verdict": "drop", "reason": drop.reason, "evidence": drop.evidence}
            for name, value in said.items():
                new[name][at] = value
            new["verdicts"][at].append(said)
        elif verdict == "keep":
            note = notes.get(document, "")
            new["verdicts"][at].append({"stage": stage, "verdict": "keep", "reason": "", "evidence": note})
    for name in names[1:]:
        at = SCHEMA.get_field_index(name)
        table = table.set_column(at, SCHEMA.field(at), pa.array(new[name], SCHEMA.field(at).type))
    return table


def columns_of(folder: Path, *columns: str) -> Iterator[tuple[Any, ...]]:
    """Yield these columns of every document, sorted by id."""
    for part in parts(folder):
        for table in batches(part, columns):
            yield from zip(*(table[name].to_pylist() for name in columns), strict=True)
