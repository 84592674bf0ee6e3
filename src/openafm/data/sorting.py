"""Documents in any order become parts in the order of their ids, in bounded memory (step `extract`).

Rows are gathered up to RUN_BYTES of text, sorted and written as a run, with a row group for each first two digits of
ids. A part is then put together from its row groups of all runs.
"""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from openafm.data.documents import FOLDER, SCHEMA, Row, cut, digits_of, part_names, write_funnel, write_part

RUN_BYTES = 256_000_000
_DIGITS = 2


class Sorter:
    """`add` tables of documents, then `write` the parts."""

    def __init__(self, scratch: Path) -> None:
        self.folder = scratch / "runs"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.size, self._waiting, self._waiting_size = 0, list[pa.Table](), 0
        self._runs: list[tuple[Path, dict[str, int]]] = []

    def add(self, table: pa.Table) -> None:
        """Take more documents."""
        size = pc.sum(table["bytes"]).as_py() or 0
        self._waiting.append(table.select(SCHEMA.names).cast(SCHEMA))
        self._waiting_size += size
        self.size += size
        if self._waiting_size >= RUN_BYTES:
            self._spill()

    def _sorted(self) -> pa.Table:
        table = pa.concat_tables([SCHEMA.empty_table(), *self._waiting]).sort_by("id").combine_chunks()
        self._waiting, self._waiting_size = [], 0
        return table

    def _spill(self) -> None:
        table = self._sorted()
        path, groups = self.folder / f"{len(self._runs)}.parquet", dict[str, int]()
        with pq.ParquetWriter(path, SCHEMA, compression="lz4") as writer:
            for name, part in cut(table, _DIGITS):
                if len(part):
                    groups[name] = len(groups)
                    writer.write_table(part, row_group_size=len(part))
        self._runs.append((path, groups))

    def _gathered(self, name: str) -> pa.Table:
        """All documents of the runs whose ids begin with `name`, the runs one after the other."""
        found = [SCHEMA.empty_table()]
        for path, groups in self._runs:
            wanted = [number for prefix, number in groups.items() if prefix.startswith(name) or name.startswith(prefix)]
            table = pq.ParquetFile(path).read_row_groups(wanted) if wanted else SCHEMA.empty_table()
            found.append(table.filter(pc.starts_with(table["id"], name)).cast(SCHEMA))
        return pa.concat_tables(found)

    def write(self, out: Path, finish: Callable[[pa.Table], pa.Table]) -> list[Row]:
        """Write the parts, each as `finish` (unsorted documents in, documents sorted by id out) leaves it."""
        digits, stages = digits_of(self.size), list[list[Row]]()
        if self._runs and self._waiting:
            self._spill()
        if self._runs:
            parts: Iterable[tuple[str, pa.Table]] = ((name, self._gathered(name)) for name in part_names(digits))
        else:
            parts = cut(self._sorted(), digits)
        for name, table in parts:
            stages.append(write_part(out / FOLDER / f"{name}.parquet", [finish(table)]))
        shutil.rmtree(self.folder)
        return write_funnel(out, stages)
