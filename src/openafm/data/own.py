"""A user's own crawl and files, of any form that their names tell: streamed into the artifact of the step `fetch`.

    openafm run nano --set fetch.texts=FOLDER      # or a file; or a catalogue's source of form `any`

| files (also .gz and .zst) | become |
|---|---|
| .warc, .wet | archives, read by `extract` (hard links where the disk allows) |
| .html, .htm, .xhtml | pages in a WARC file, their encoding found by `extract` |
| .txt, .md, .rst | documents of the source's flow |
| code | documents of the flow code, with their language by suffix |
| .jsonl, .ndjson, .parquet | a document a row, of the row's `flow`, else the source's |

A row has `text` (or `content`, `raw_content`), or `html`; it may have url, title, licence (license), source, flow and
code_language. One page or row is in memory at a time. What cannot be read is a reject with file, record and reason, in
rejects.jsonl; files of other forms are counted.
"""

import gzip
import io
import json
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from warcio.warcwriter import WARCWriter

from openafm.data.catalogue import Source
from openafm.data.crawl_archive import write_page
from openafm.data.documents import FLOWS
from openafm.data.extract import decode
from openafm.data.readers import Document, Page, content_type
from openafm.data.warc import MAX_PAGE_BYTES

CRAWL = "crawl.json"
"""What `openafm crawl` leaves in its folder, whose warc/ alone is input."""
ARCHIVES = frozenset({".warc", ".wet"})
HTML = frozenset({".html", ".htm", ".xhtml"})
TEXTS = frozenset({".txt", ".text", ".md", ".markdown", ".rst"})
ROWS = frozenset({".jsonl", ".ndjson", ".parquet"})
LANGUAGES = {
    "Python": ".py .pyi", "C": ".c .h", "C++": ".cc .cpp .cxx .hh .hpp", "Objective-C": ".m .mm", "Swift": ".swift",
    "JavaScript": ".js .mjs .cjs .jsx", "TypeScript": ".ts .tsx", "Java": ".java", "Kotlin": ".kt .kts", "Go": ".go",
    "Rust": ".rs", "Ruby": ".rb", "PHP": ".php", "Perl": ".pl .pm", "Shell": ".sh .bash", "C#": ".cs",
    "Scala": ".scala", "Lua": ".lua", "R": ".r", "Julia": ".jl", "Haskell": ".hs", "SQL": ".sql",
}  # fmt: skip
CODE = {suffix: language for language, suffixes in LANGUAGES.items() for suffix in suffixes.split()}
PAGES_IN_ARCHIVE = 5_000
MAX_LINE = 4 * MAX_PAGE_BYTES
_UNREADABLE = (OSError, ValueError, EOFError, zlib.error, pa.ArrowException, RecursionError)


@dataclass(frozen=True)
class Reject:
    """What could not be read, and why: a line of rejects.jsonl. `record` is a line or row, 0 for the file."""

    file: str
    record: int
    reason: str
    evidence: str


@dataclass
class Taken:
    """What was read, counted."""

    files: Counter[str] = field(default_factory=Counter)
    """By suffix, those of other forms too."""
    ignored: Counter[str] = field(default_factory=Counter)
    documents: Counter[str] = field(default_factory=Counter)
    """By flow."""
    pages: int = 0
    archives: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """By reason."""

    def summary(self) -> dict[str, Any]:
        """As metrics."""
        counts = {name: dict(sorted(getattr(self, name).items())) for name in ("files", "ignored", "documents")}
        return counts | {
            "pages": self.pages,
            "archives": self.archives,
            "rejected": dict(sorted(self.rejected.items())),
        }


def suffix(path: Path) -> str:
    """The suffix that tells a file's form, without that of its compression: "a.JSONL.gz" -> ".jsonl"."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz").removesuffix(".zst")).suffix


def files(root: Path) -> Iterator[Path]:
    """The files of a folder in the order of their names (or a single file); of a crawl's folder its archives alone."""
    if root.is_file():
        yield root
        return
    for folder, folders, names in os.walk(root / "warc" if (root / CRAWL).is_file() else root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (path for name in sorted(names) if not (path := Path(folder, name)).is_symlink() and path.is_file())


def _wanted(source: Source, name: str) -> bool:
    return any(fnmatchcase(name, glob) for glob in source.files) and not any(
        fnmatchcase(name, glob) for glob in source.exclude
    )


def read_file(path: Path, source: Source, name: str) -> Iterator[Page | Document | Reject]:
    """What one file of a known form holds, archives aside; whatever its bytes provoke becomes a reject."""
    kind = suffix(path)
    try:
        if kind == ".parquet":
            yield from _parquet(path, source, name)
        elif kind in ROWS:
            yield from _lines(path, source, name)
        else:
            yield _whole(path, source, name, kind)
    except _UNREADABLE as error:
        yield Reject(name, 0, "unreadable", f"{type(error).__name__}: {error}"[:200])


def opened(path: Path) -> IO[bytes]:
    """A file as a stream of bytes, decompressed on the way."""
    if path.suffix.lower() == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    if path.suffix.lower() == ".zst":
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _url(source: Source, name: str) -> str:
    return f"https://{source.host}/{quote(name.removeprefix(source.strip).lstrip('/'), safe='/~:@!$&()*+,;=')}"


def _whole(path: Path, source: Source, name: str, kind: str) -> Page | Document | Reject:
    with opened(path) as file:
        data = file.read(MAX_PAGE_BYTES + 1)
    if len(data) > MAX_PAGE_BYTES:
        return Reject(name, 0, "too-large", f"more than {MAX_PAGE_BYTES} bytes; split it, or make it rows of a .jsonl")
    if kind in HTML:
        return Page(_url(source, name), data, content_type(data), source.package, source.licence)
    text = decode(data).replace("\r\n", "\n")
    if not text.strip():
        return Reject(name, 0, "empty", "no text")
    flow = "code" if kind in CODE else source.flow
    language = source.language or CODE.get(kind, "")
    return Document(_url(source, name), flow, source.host, source.licence, path.name, text, language)


def _lines(path: Path, source: Source, name: str) -> Iterator[Page | Document | Reject]:
    number = 0
    with opened(path) as file:
        while line := file.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE and line[-1:] != b"\n":
                yield Reject(name, number, "too-large", f"a line of more than {MAX_LINE} bytes")
                while (rest := file.readline(MAX_LINE)) and rest[-1:] != b"\n":
                    pass
            elif line.strip():
                try:
                    yield _row(json.loads(line), source, name, number)
                except (ValueError, RecursionError) as error:
                    yield Reject(name, number, "not-json", f"{type(error).__name__}: {error}"[:200])


def _parquet(path: Path, source: Source, name: str) -> Iterator[Page | Document | Reject]:
    with pq.ParquetFile(path) as file:
        known = [column for column in file.schema_arrow.names if column in _COLUMNS]
        number = 0
        for batch in file.iter_batches(batch_size=64, columns=known):
            for row in batch.to_pylist():
                number += 1
                yield _row(row, source, name, number)


_TEXT_COLUMNS = ("text", "content", "raw_content")
_COLUMNS = {*_TEXT_COLUMNS, *"html url title licence license source flow code_language".split()}


def _row(row: Any, source: Source, name: str, number: int) -> Page | Document | Reject:
    if not isinstance(row, Mapping):
        return Reject(name, number, "not-an-object", f"a row is an object with text or html, not {type(row).__name__}")
    fields = {key: value for key in _COLUMNS if isinstance(value := row.get(key), str) and value}
    url = fields.get("url", f"{_url(source, name)}#{number}")
    licence = fields.get("licence") or fields.get("license") or source.licence
    html = row.get("html")
    if isinstance(html, bytes) or "html" in fields:
        data = html if isinstance(html, bytes) else fields["html"].encode("utf-8", "replace")
        kind = "text/html" if isinstance(html, bytes) else "text/html; charset=utf-8"
        if not url.startswith(("https://", "http://")) or not url.isprintable() or " " in url:
            return Reject(name, number, "no-url", f"a page needs an http address, not {url[:80]!r}")
        return _short(Page(url, data, kind, source.package, licence), len(data), name, number)
    text = next((fields[key] for key in _TEXT_COLUMNS if key in fields), "")
    if not text.strip():
        return Reject(name, number, "no-text", f"none of {', '.join((*_TEXT_COLUMNS, 'html'))} is a text")
    flow = fields.get("flow", source.flow)
    if flow not in FLOWS:
        return Reject(name, number, "unknown-flow", f"flow {flow[:80]!r} is none of {', '.join(FLOWS)}")
    language = fields.get("code_language", source.language)
    origin, title = fields.get("source", source.host), fields.get("title", "")
    return _short(Document(url, flow, origin, licence, title, text, language), len(text), name, number)


def _short(item: Page | Document, size: int, name: str, number: int) -> Page | Document | Reject:
    return item if size <= MAX_PAGE_BYTES else Reject(name, number, "too-large", f"more than {MAX_PAGE_BYTES} bytes")


def take(
    sources: list[tuple[Source, Path]], out: Path, date: str, report: Callable[[str, float, float | None], None]
) -> Taken:
    """Read sources (and where they are) into `out`: archives and pages to warc/, documents to FLOW.jsonl.

    `date` is that of the pages' WARC records (RFC 3339). Equal inputs give equal bytes.
    """
    taken = Taken()
    with ExitStack() as stack:
        write = _Writer(out, date, stack, taken)
        for number, (source, root) in enumerate(sources):
            for path in files(root):
                name = path.name if path == root else path.relative_to(root).as_posix()
                if not _wanted(source, name):
                    continue
                kind = suffix(path)
                taken.files[kind] += 1
                report("own files", taken.files.total(), None)
                if kind in ARCHIVES:
                    write.archive(path, f"own{number}-{name}")
                elif kind in HTML or kind in TEXTS or kind in ROWS or kind in CODE:
                    for item in read_file(path, source, name):
                        write(item)
                else:
                    taken.ignored[kind] += 1
    return taken


class _Writer:
    """Puts items into their files, which stay open meanwhile."""

    def __init__(self, out: Path, date: str, stack: ExitStack, taken: Taken) -> None:
        self.out, self.date, self.stack, self.taken = out, date, stack, taken
        self.opened: dict[str, IO[bytes]] = {}
        (out / "warc").mkdir(exist_ok=True)

    def __call__(self, item: Page | Document | Reject) -> None:
        if isinstance(item, Page):
            part = self.taken.pages // PAGES_IN_ARCHIVE
            write_page(
                WARCWriter(self._file(f"warc/own-{part:05}.warc.gz"), gzip=True, warc_version="1.1"), item, self.date
            )
            self.taken.pages += 1
        elif isinstance(item, Document):
            self._line(f"{item.flow}.jsonl", item.__dict__)
            self.taken.documents[item.flow] += 1
        else:
            self._line("rejects.jsonl", item.__dict__)
            self.taken.rejected[item.reason] += 1

    def archive(self, path: Path, name: str) -> None:
        """Link or copy a WARC file; the artifact's names end with .warc or .warc.SUFFIX."""
        name = name.replace("/", "+")
        target = self.out / "warc" / (name if ".warc" in name.lower() else name.replace(".wet", ".warc.wet"))
        try:
            os.link(path, target)
        except OSError:
            try:
                shutil.copyfile(path, target)
            except OSError as error:
                target.unlink(missing_ok=True)
                self(Reject(name, 0, "unreadable", f"{type(error).__name__}: {error}"[:200]))
                return
        self.taken.archives += 1

    def _file(self, name: str) -> IO[bytes]:
        if name not in self.opened:
            self.opened[name] = self.stack.enter_context((self.out / name).open("ab"))
        return self.opened[name]

    def _line(self, name: str, row: Mapping[str, Any]) -> None:
        self._file(name).write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
