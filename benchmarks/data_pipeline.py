"""Web archives to clean documents: documents a second on one core, where the time goes, and datatrove on the same work.

    openafm bench data-pipeline --run runs/nano

The archives are those of the run's `fetch` step. Ours are the steps extract (robots.txt, body text), clean (safety,
personal data, language, rules), dedup and decontaminate, parts to parts. datatrove runs FineWeb's chain as its example
has it: Trafilatura, language by fastText (the same model file as ours), Gopher's repetition and quality rules, C4's and
FineWeb's rules, then MinHash's four stages and the removal of addresses; words are cut at white space, which is faster
than its default. It has no robots.txt, safety, licences or card numbers in that chain, and its decontamination is not
run. Both start with everything imported; the first round of each is not counted.
"""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dedup import datatrove_minhash
from harness import alternate, options, show
from openafm.data import documents
from openafm.data.clean import CleanConfig, clean
from openafm.data.decontaminate import DecontaminateConfig, decontaminate
from openafm.data.dedup import DedupConfig, dedup
from openafm.data.ingest import ExtractConfig, extract
from openafm.data.language import LanguageModel
from openafm.stage import Context
from texts import words_at_white_space

STEPS = ("extract", "clean", "dedup", "decontaminate")


def ours(sources: Path, folder: Path, took: list[dict[str, float]]) -> int:
    """The four steps; adds {step: seconds} to `took` and returns how many documents they read."""
    seconds = dict[str, float]()
    for name, before in zip(STEPS, ("", *STEPS), strict=False):
        context = Context(folder / name, folder / f"{name}-scratch")
        for path in (context.out, context.scratch):
            path.mkdir(parents=True)
        started, given = time.perf_counter(), folder / before
        match name:
            case "extract":
                count = extract(ExtractConfig(), context, sources=sources)["documents"]
            case "clean":
                clean(CleanConfig(), context, documents=given, sources=sources)
            case "dedup":
                dedup(DedupConfig(), context, documents=given)
            case _:
                decontaminate(DecontaminateConfig(), context, documents=given, sources=sources)
        seconds[name] = time.perf_counter() - started
    took.append(seconds)
    return count


def with_datatrove(sources: Path, folder: Path, took: list[dict[str, float]]) -> int:
    """FineWeb's chain in this process; how many documents its reader gave."""
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, LambdaFilter
    from datatrove.pipeline.filters import GopherRepetitionFilter as Repetition
    from datatrove.pipeline.formatters import PIIFormatter
    from datatrove.pipeline.readers import JsonlReader, WarcReader
    from datatrove.pipeline.writers.jsonl import JsonlWriter
    from datatrove.utils.logging import logger

    logger.remove()
    words, model, counted = words_at_white_space(), LanguageModel(sources / "models" / "lid.176.ftz"), 0

    def read() -> Any:
        nonlocal counted
        for document in WarcReader(str(sources / "warc")).run(rank=0, world_size=1):
            counted += 1
            yield document

    seconds, started = dict[str, float](), time.perf_counter()
    texts: Any = Trafilatura(favour_precision=True, timeout=10).run(read(), 0, 1)
    rules = (
        LambdaFilter(lambda document: model.detect(document.text)[0] == "en"),
        Repetition(language=words),
        GopherQualityFilter(language=words),
        C4QualityFilter(filter_no_terminal_punct=False, language=words),
        FineWebQualityFilter(language=words),
    )
    for rule in rules:
        texts = rule.run(texts, 0, 1)
    with JsonlWriter(str(folder / "filtered"), output_filename="texts.jsonl", compression=None) as writer:
        for document in texts:
            writer.write(document)
    seconds["extract and filter"] = time.perf_counter() - started
    started = time.perf_counter()
    datatrove_minhash(JsonlReader(str(folder / "filtered")), folder)
    seconds["dedup"] = time.perf_counter() - started
    started = time.perf_counter()
    with JsonlWriter(str(folder / "clean"), compression=None) as writer:
        for document in PIIFormatter().run(JsonlReader(str(folder / "kept")).run(rank=0, world_size=1), 0, 1):
            writer.write(document)
    seconds["personal data"] = time.perf_counter() - started
    took.append(seconds)
    return counted


def archives(run: Path, folder: Path) -> Path:
    """A `fetch` artifact with the run's web archives alone."""
    given = run / "fetch"
    if not (given / "warc").is_dir():
        raise SystemExit(f"{given} has no warc/: `openafm run nano --until fetch` makes it; or name another --run")
    folder.mkdir()
    for name in ("warc", "benchmarks", "models", "words"):
        (folder / name).symlink_to((given / name).resolve())
    return folder


def main() -> None:
    chosen = options(__doc__, run="runs/nano", cores=1)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: chosen.cores])
    took: dict[str, list[dict[str, float]]] = {"openafm": [], "datatrove": []}
    with tempfile.TemporaryDirectory() as name:
        sources = archives(Path(chosen.run), Path(name) / "sources")

        def rate(contestant: str, work: Callable[[Path, Path, list[dict[str, float]]], int]) -> Callable[[], float]:
            def measure() -> float:
                folder = Path(name) / contestant
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                count = work(sources, folder, took[contestant])
                return count / sum(took[contestant][-1].values())

            return measure

        contestants = {"openafm": rate("openafm", ours), "datatrove": rate("datatrove", with_datatrove)}
        figures = alternate(contestants, chosen.repeats)
        count = sum(1 for _ in documents.rows(Path(name) / "openafm" / "extract"))
    detail = {contestant: steps(contestant, rows[1:], count) for contestant, rows in took.items()}
    show("data pipeline", f"pages/s on {chosen.cores} cores", figures, limit=None, detail=detail, as_json=chosen.json)


def steps(contestant: str, rows: list[dict[str, float]], count: int) -> dict[str, float]:
    """Print each step's median seconds and share, and its rate over all pages; return the seconds."""
    seconds = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    table = Table(title=f"{contestant}: {count:,} pages")
    for column in ("step", "seconds", "share", "pages/s"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.2f}", f"{value / sum(seconds.values()):.0%}", f"{count / value:,.0f}")
    Console().print(table)
    return seconds


if __name__ == "__main__":
    main()
