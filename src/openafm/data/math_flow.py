"""Mathematical web pages on their way into the `math` flow (step `extract` with `math`), in bounded memory.

They are set aside on disk while the web is read; when all of it has been seen, a classifier that has learned from the
math flow and from a sample of plain pages says which of them stay (AFM, arXiv 2407.21075, section 3.1.1).
"""

import heapq
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from openafm.data import documents
from openafm.data.documents import SCHEMA
from openafm.data.math_pages import is_mathematical
from openafm.data.math_quality import MAX_SEEDS, MIN_SEEDS, MathQuality
from openafm.stage import Metrics

MATH = ("math_kind", "question")
"""What travels beside a row while pages are read: the kind of a math page, and its question and answers as JSON."""
PAGE_SCHEMA = pa.schema([*SCHEMA, *((name, pa.string()) for name in MATH)])

ROWS = 1024
"""Pages rated at once."""


class MathPages:
    """`sift` every table of web pages, then take back the math pages from `rated`."""

    def __init__(self, scratch: Path) -> None:
        self.path, self.count = scratch / "math_pages.parquet", 0
        self._writer = pq.ParquetWriter(self.path, PAGE_SCHEMA, compression="lz4")
        self._plain: list[tuple[int, str]] = []  # a heap of the least ids so far, negated: any order of pages is alike

    def sift(self, table: pa.Table) -> pa.Table:
        """Set the math pages of a table aside; the others come back."""
        math = pa.compute.equal(table["flow"], "math")
        self._writer.write_table(table.filter(math))
        self.count += pa.compute.sum(math).as_py() or 0
        others = table.filter(pa.compute.invert(math))
        for identity, text in zip(others["id"].to_pylist(), others["text"].to_pylist(), strict=True):
            if text and not is_mathematical(text):
                entry = (-int(identity, 16), text)
                (heapq.heappush if len(self._plain) < MAX_SEEDS else heapq.heappushpop)(self._plain, entry)
        return others

    def rated(
        self, seeds: list[str], least: float, seed: int, scratch: Path, out: Path, metrics: Metrics
    ) -> Iterator[pa.Table]:
        """The math pages, those rated below `least` in the web flow again; writes questions.jsonl of the others.

        The classifier learns from `seeds`, texts of the math flow, against plain web pages (`math_quality`). `metrics`
        gains what came of it.
        """
        self._writer.close()
        plain = [text for _, text in sorted(self._plain, reverse=True)]
        model = MathQuality(seeds, plain, scratch, seed) if min(len(seeds), len(plain)) >= MIN_SEEDS else None
        kinds, questions, answers = Counter[str](), 0, 0
        with (out / "questions.jsonl").open("w") as asked:
            for batch in pq.ParquetFile(self.path).iter_batches(ROWS):
                rows = [rate(row, model, least) for row in batch.to_pylist()]
                for row in rows:
                    if row["flow"] == "math":
                        kinds[row["math_kind"]] += 1
                        if row["question"]:
                            entry = {"url": row["url"]} | json.loads(row["question"])
                            asked.write(json.dumps(entry) + "\n")
                            questions, answers = questions + 1, answers + len(entry["answers"])
                yield pa.Table.from_pylist(rows, PAGE_SCHEMA)
        learned = {"seeds": model.seeds, "accuracy_on_held_out_seeds": model.accuracy} if model else "too few seeds"
        metrics |= {
            "pages": self.count,
            "quality": learned,
            "kept": kinds.total(),
            "kinds": dict(sorted(kinds.items())),
        }
        metrics |= {"questions": questions, "answers": answers}


def rate(row: dict[str, Any], model: MathQuality | None, least: float) -> dict[str, Any]:
    """The row with the classifier's rating; below `least` it is a web page."""
    if model is None:
        return row
    score = model.score(row["text"])
    row = documents.judged(row, "extract", "keep", "math.quality", f"rated {score:.3f} of 1 as mathematics")
    return row | {"flow": "math" if score >= least else "web"}
