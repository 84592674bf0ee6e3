"""Step `extract`: pages out of WARC files and the four other flows become documents in the order of their ids.

AFM's web data begins with a crawl that obeys robots.txt and with body extraction (arXiv 2407.21075, section 3.1.1).
Reading, the robots check and the extraction are one Daft program over the archive files; it runs in processes, as HTML
is parsed under Python's lock. Pages that cannot be used stay in the table as dropped rows where their URL is known.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from openafm import jsonl
from openafm.data import documents, robots
from openafm.data.documents import SCHEMA, Row
from openafm.data.extract import Extraction, UndecodableError, decode, extract_decoded
from openafm.data.frames import daft
from openafm.data.math_flow import MATH, PAGE_SCHEMA, MathPages
from openafm.data.math_pages import math_page
from openafm.data.own import ARCHIVES, suffix
from openafm.data.parallel import workers
from openafm.data.sorting import Sorter
from openafm.data.warc import TEXT, Page, is_robots, pages
from openafm.stage import Config, Context, Metrics

STAGE = "extract"
_BATCH = 16  # pages handed to a process at once: small enough to keep all of them busy to the end

Robots = Mapping[str, tuple[int, bytes]]
"""Host -> (HTTP status, body) of its robots.txt."""

_PAGE = daft.DataType.struct(
    {
        **{name: daft.DataType.string() for name in ("url", "content_type", "charset", "reject", "evidence")},
        "status": daft.DataType.int64(),
        "body": daft.DataType.binary(),
    }
)
_DOCUMENT = daft.DataType.from_arrow_type(pa.struct(list(PAGE_SCHEMA)))


class ExtractConfig(Config):
    """What the extraction depends on."""

    agent: str = robots.AGENT
    """The crawler's name that robots.txt rules are looked up for."""
    min_characters: int = 1
    """Pages with less body text than this are dropped as empty."""
    math: bool = False
    """Take mathematical web pages into the `math` flow, their questions and answers as pairs."""
    min_math_quality: float = 0.5
    """Math pages that the quality classifier rates below stay in the web flow."""


def read_robots(paths: list[Path]) -> dict[str, tuple[int, bytes]]:
    """Return the robots.txt answer of every host in the archives.

    One whose only record is damaged counts as unreachable (500), which shuts out (RFC 9309, section 2.3.1.4).
    """
    found: dict[str, tuple[int, bytes]] = {}
    damaged: dict[str, tuple[int, bytes]] = {}
    for path in paths:
        for page in pages(path, wanted=is_robots):
            if page.url:
                answers = damaged if page.reject else found
                answers.setdefault(urlsplit(page.url).netloc.lower(), (500 if page.reject else page.status, page.body))
    return damaged | found


def allowed(url: str, known: Robots, agent: str) -> bool:
    """Tell whether robots.txt lets `agent` have the page; a host without one allows everything."""
    status, body = known.get(urlsplit(url).netloc.lower(), (404, b""))
    verdict = robots.allowed_by_status(status)
    return robots.allowed(body, url, agent) if verdict is None else verdict


def page_document(page: Page, known: Robots, config: ExtractConfig) -> Row:
    """Return a page's row: its body text, or a drop that says why there is none."""
    source = urlsplit(page.url).netloc.lower()
    row = documents.document(page.url, "web", "", source=source)
    if page.reject:
        return documents.drop(row, STAGE, page.reject, page.evidence)
    if not allowed(page.url, known, config.agent):
        return documents.drop(row, STAGE, "robots", f"robots.txt of {source} shuts {config.agent} out of this path")
    try:
        html = decode(page.body, page.charset)
    except UndecodableError as error:
        return documents.drop(row, STAGE, "undecodable", str(error))
    found = _body(html, page.content_type, page.url)
    row = documents.with_text(row | {"title": found.title, "language": found.language}, found.full_text)
    if len(found.text) < config.min_characters:
        return documents.drop(row, STAGE, "empty", f"{len(page.body)} bytes of HTML hold no body text")
    math = math_page(html, page.url, found) if config.math else None
    if math is not None:
        question = json.dumps(math.question.as_json()) if math.question else None
        row = documents.with_text(row, math.text) | {"flow": "math", "math_kind": math.kind, "question": question}
    return documents.judged(row, STAGE, "keep")


def _body(text: str, content_type: str, url: str) -> Extraction:
    """The body of a page; plain text (of WET files too) is one as it is, unless a server called its HTML so."""
    if content_type not in TEXT or text[:1000].lstrip().lower().startswith(("<!doctype", "<html", "<head")):
        return extract_decoded(text, url)
    return Extraction(text.replace("\r\n", "\n").replace("\0", "").strip("\n"), "", "", "")


def pages_of(path: Path) -> Iterator[tuple[str, Extraction]]:
    """Address and body of each page of an archive, what cannot be read left out, or of one HTML file.

    Raises ValueError for a file that is no text.
    """
    if suffix(path) not in ARCHIVES:
        try:
            text = decode(path.read_bytes(), None)
        except UndecodableError as error:
            raise ValueError(f"{path}: {error}") from error
        yield str(path), _body(text, "text/html", str(path))
        return
    for page in pages(path):
        if not page.reject and not is_robots(page.url):
            with suppress(UndecodableError):
                yield page.url, _body(decode(page.body, page.charset), page.content_type, page.url)


@daft.func(return_dtype=_PAGE)
def _read(path: str) -> Iterator[dict[str, Any]]:
    for page in pages(Path(path)):
        if not is_robots(page.url):
            yield asdict(page)


class _Extractor:
    """Runs `page_document` on batches in a process of its own."""

    def __init__(self, known: dict[str, tuple[int, bytes]], config: str) -> None:
        self.known = known
        self.config = ExtractConfig.model_validate_json(config)

    @daft.method.batch(return_dtype=_DOCUMENT, batch_size=_BATCH)
    def rows(self, page: daft.Series) -> list[Row]:
        """One row for each page of a batch; what a page lacks of mathematics is None."""
        none = dict.fromkeys(MATH)
        return [none | page_document(Page(**fields), self.known, self.config) for fields in page.to_pylist()]


def _web(paths: list[Path], config: ExtractConfig, context: Context) -> Iterator[pa.Table]:
    extractor = daft.cls(_Extractor, use_process=True, max_concurrency=workers())
    frame = daft.from_pydict({"path": [str(path) for path in paths]}).select(_read(daft.col("path")).alias("page"))
    rows = extractor(read_robots(paths), config.model_dump_json()).rows(frame["page"])
    frame = frame.select(rows.alias("row")).select(*(daft.col("row")[name].alias(name) for name in PAGE_SCHEMA.names))
    done = 0
    for part in frame.to_arrow_iter():
        done += len(part)
        context.report("extract web pages", done, None)
        yield pa.Table.from_batches([part]).cast(PAGE_SCHEMA)


def _web_sorted(
    paths: list[Path], config: ExtractConfig, context: Context, sources: Path, metrics: Metrics
) -> Iterator[pa.Table]:
    """Web pages, with `math` the mathematical ones last and in their flow; `metrics` gains what became of those."""
    if not config.math:
        yield from _web(paths, config, context)
        return
    aside, flow = MathPages(context.scratch), sources / "math.jsonl"
    for table in _web(paths, config, context):
        yield aside.sift(table)
    seeds = [row["text"] for row in read_flow(flow, "math", [])] if flow.is_file() else []
    yield from aside.rated(seeds, config.min_math_quality, context.seed, context.scratch, context.out, metrics)


def read_flow(path: Path, flow: str, rejects: list[str]) -> Iterator[Row]:
    """Yield the documents of one of the JSONL flows; what cannot be read is added to `rejects` as "line: why"."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                url, text = entry["url"], entry["text"]
                if not (isinstance(url, str) and url and isinstance(text, str)):
                    raise ValueError("url and text must be texts")
                columns = {name: entry.get(name) or "" for name in ("source", "licence", "title", "code_language")}
                row = documents.document(url, flow, text, **columns, planted=entry.get("planted"))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                rejects.append(f"{path.name}:{number}: {type(error).__name__}: {error}"[:200])
            else:
                yield documents.judged(row, STAGE, "keep")


def _tables(rows: Iterator[Row]) -> Iterator[pa.Table]:
    while group := list(islice(rows, documents.GROUP_ROWS)):
        yield pa.Table.from_pylist(group, SCHEMA)


def planted_marks(sources: Path) -> dict[str, str]:
    """Return the kind of every planted URL; measurements alone read this."""
    path = sources / "planted.jsonl"
    marks = jsonl.read(path) if path.is_file() else []
    return {mark["url"]: mark["kind"] for mark in marks}


def _first_of_each_url(table: pa.Table) -> tuple[pa.Table, int]:
    """Keep the first row of each id: a kept one before a dropped one; return how many others there were."""
    order = table.append_column("at", pa.array(range(len(table)))).sort_by(
        [("id", "ascending"), ("verdict", "descending")]
        + [(name, "ascending") for name in ("text", "title", "reason", "evidence")]
    )
    ids = order["id"].to_pylist()
    first = [at == 0 or ids[at] != ids[at - 1] for at in range(len(ids))]
    return order.filter(pa.array(first, pa.bool_())).drop_columns("at"), len(ids) - sum(first)


def _marked(table: pa.Table, marks: Mapping[str, str]) -> pa.Table:
    """The table with what was planted in it."""
    columns = zip(table["url"].to_pylist(), table["planted"].to_pylist(), strict=True)
    planted = pa.array([marks.get(url, mark) for url, mark in columns], pa.string())
    return table.set_column(SCHEMA.get_field_index("planted"), "planted", planted)


def extract(config: ExtractConfig, context: Context, *, sources: Path) -> Metrics:
    """Write documents/ and funnel.json from `sources`: warc/*.warc.gz and {code,math,licensed,public}.jsonl.

    Rejects without a URL (damaged records, malformed lines) are written to rejects.jsonl and counted; with `math`, the
    questions of mathematical threads to questions.jsonl.
    """
    paths = sorted(path for path in (sources / "warc").glob("*.warc*") if path.is_file())
    flows = [(sources / f"{flow}.jsonl", flow) for flow in documents.FLOWS if (sources / f"{flow}.jsonl").is_file()]
    if not paths and not flows:
        raise ValueError(f"{sources} holds neither warc/*.warc.gz nor a flow like code.jsonl: run `fetch` first")
    rejects, sorter, marks, metrics = list[str](), Sorter(context.scratch), planted_marks(sources), Metrics()
    for table in _web_sorted(paths, config, context, sources, metrics) if paths else ():
        nameless = pa.compute.equal(table["url"], "")
        sorter.add(table.filter(pa.compute.invert(nameless)))
        lost = table.filter(nameless).select(["reason", "evidence"]).to_pylist()
        rejects += [f"{row['reason']}: {row['evidence']}" for row in lost]
    for path, flow in context.track(flows, "read flows"):
        for table in _tables(read_flow(path, flow, rejects)):
            sorter.add(table)
    repeated = 0

    def finish(table: pa.Table) -> pa.Table:
        """The rows with each URL once and with what was planted in them; the others are counted."""
        nonlocal repeated
        table, others = _first_of_each_url(table)
        repeated += others
        return _marked(table, marks)

    funnel = sorter.write(context.out, finish)
    (context.out / "rejects.jsonl").write_text("".join(json.dumps(reject) + "\n" for reject in sorted(rejects)))
    kept = {entry["flow"]: entry["documents"] for entry in funnel if not entry["stage"]}
    total = sum(entry["documents"] for entry in funnel)
    return {
        "headline": f"{total:,} documents: " + ", ".join(f"{flow} {n:,}" for flow, n in sorted(kept.items())),
        "archives": len(paths),
        "documents": total,
        "kept": dict(sorted(kept.items())),
        "dropped": documents.drops_by_reason(funnel, STAGE),
        "rejected_without_url": len(rejects),
        "repeated_urls": repeated,
        "planted_recall": documents.recall(documents.read(context.out, ("planted", "reason")), {"robots": ("robots",)}),
    } | ({"math": metrics} if metrics else {})
