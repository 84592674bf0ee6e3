"""Read WARC and WET files (gzip, zstd or plain) into pages for the `extract` step; damage becomes counted rejects.

A file is read as a stream, a record at a time. Every record is a compression member of its own (WARC 1.1, annex D), so
behind damage the next member is sought. Zstandard files may begin with a dictionary for all their frames (IIPC's
"Zstandard Compression for WARC Files 1.0").
"""

import io
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from fastwarc.stream_io import BrotliReader, ChunkedReader, WarcReader, ZstdReader
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from openafm.data import optout

MAX_PAGE_BYTES = 8 * 1024 * 1024
HTML = ("text/html", "application/xhtml+xml")
TEXT = ("text/plain", "text/markdown")
_PAGES = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion
_MAX_FAILURES = 1_000
"""So many places in a row that only look like the start of a record, and the rest of the file is given up."""
_DICTIONARY = b"\x5d\x2a\x4d\x18"
_ZSTD = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True)
class Page:
    """One HTTP response. `reject` says why it cannot be used ("" when it can); `url` is "" when it is not known."""

    url: str
    status: int
    content_type: str
    charset: str | None
    body: bytes
    reject: str = ""
    evidence: str = ""


def is_robots(url: str) -> bool:
    """Tell whether the URL is a site's robots.txt."""
    return url.partition("://")[2].partition("/")[2].partition("?")[0] == "robots.txt"


def pages(path: Path, wanted: Callable[[str], bool] = lambda url: True) -> Iterator[Page]:
    """Yield the pages of one file: responses, resources, and the texts of a WET file's conversion records.

    A damaged record is yielded as a "warc.broken" and reading goes on behind it. `wanted` may spare the work for
    records whose URL it turns down.
    """
    with path.open("rb") as file:
        begin, dictionary = file.read(4), _dictionary(file)
        start, found, failures = 0, 0, 0
        while start >= 0:
            last = -1
            file.seek(start)
            stream = ZstdReader(file, dictionary=dictionary) if dictionary and start else file
            try:
                for record in ArchiveIterator(stream, _PAGES, parse_http=False, quirks_mode=True):
                    found, last = found + 1, max(last, start, record.stream_pos)
                    if wanted(_url(record)):
                        yield _safe_page(record)
                start = -1
            except (OSError, ValueError) as error:
                if last >= 0 or start == 0:
                    yield _broken("", f"{path.name} behind byte {max(last, 0)}: {error}")
                failures = 0 if last >= 0 else failures + 1
                start = _next_record(file, begin, max(start, last) + 1) if failures < _MAX_FAILURES else -1
        if not found:
            yield _broken("", f"{path.name} holds no record with a page (WARC response or resource, WET conversion)")


def _dictionary(file: BinaryIO) -> bytes | None:
    """The dictionary in the skippable frame that a zstd file may begin with; it may be compressed itself."""
    file.seek(0)
    if file.read(4) != _DICTIONARY:
        return None
    data = file.read(int.from_bytes(file.read(4), "little") & 0xFFFFFF)
    with suppress(OSError, ValueError):
        return _read(ZstdReader(io.BytesIO(data))) if data[:4] == _ZSTD else data
    return None


def _next_record(file: BinaryIO, begin: bytes, start: int) -> int:
    """Return where the next record may begin at or after `start`, or -1; `begin` are the file's first bytes."""
    marks = {b"\x1f\x8b": b"\x1f\x8b\x08", _ZSTD[:2]: _ZSTD, _DICTIONARY[:2]: _ZSTD}
    mark = marks.get(begin[:2], b"WARC/1.")
    file.seek(start)
    data = b""
    while chunk := file.read(1 << 20):
        data = data[1 - len(mark) :] + chunk
        if (at := data.find(mark)) >= 0:
            return file.tell() - len(data) + at
    return -1


def _url(record: WarcRecord) -> str:
    return (record.headers.get("WARC-Target-URI") or "").strip("<> ")


def is_address(url: str) -> bool:
    """Whether a page can have this address: http or https, and a host."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


def _broken(url: str, error: object) -> Page:
    return Page(url, 0, "", None, b"", "warc.broken", str(error)[:200])


def _safe_page(record: WarcRecord) -> Page:
    """Turn whatever one record's bytes provoke in the parser into a reject of that record."""
    url = ""
    try:
        if not is_address(_url(record)):
            return Page("", 0, "", None, b"", "warc.no-url", f"the target URI is {_url(record)[:80]!r}")
        url = _url(record)
        small = record.content_length <= 2 * MAX_PAGE_BYTES
        if small and record.headers.get("WARC-Block-Digest") and not record.verify_block_digest():
            return _broken(url, "the block differs from its digest: cut off or changed")
        if record.record_type != WarcRecordType.response:
            return _bare_page(record, url)
        record.parse_http()
        return _http_page(record, url)
    except (OSError, ValueError, zlib.error) as error:
        return _broken(url, f"{type(error).__name__}: {error}")


def _bare_page(record: WarcRecord, url: str) -> Page:
    """A resource or conversion record: the page alone, without HTTP headers."""
    kind, _, rest = (record.headers.get("Content-Type") or "").lower().partition(";")
    charset = re.search(r"charset=[\"']?([\w.:-]+)", rest)
    body = _read(record.reader)
    return _judged(Page(url, 200, kind.strip(), charset[1] if charset else None, body))


def _http_page(record: WarcRecord, url: str) -> Page:
    http = record.http_headers
    if http is None or http.status_code is None:
        return Page(url, 0, "", None, b"", "warc.no-http", "the response has no HTTP header")
    kind = (record.http_content_type or "").lower()
    headers: dict[str, list[str]] = {}
    for name, value in http.to_tuples():
        headers.setdefault(name.lower(), []).append(value)
    body = decoded(_read(record.reader), headers, cut=bool(record.headers.get("WARC-Truncated")))
    page = _judged(Page(url, http.status_code, kind, record.http_charset, body))
    if page.reject or is_robots(url):
        return page
    objection = optout.of_page(headers, body if kind not in TEXT else b"").reason
    return Page(url, page.status, kind, None, b"", "opt-out", objection) if objection else page


def _judged(page: Page) -> Page:
    """The page, or why it is none; of robots.txt the beginning counts (RFC 9309, section 2.5), whatever its type."""
    reject = ""
    if is_robots(page.url):
        return page
    if len(page.body) > MAX_PAGE_BYTES:
        reject, evidence = "too-large", f"more than {MAX_PAGE_BYTES} bytes"
    elif page.status != 200:
        reject, evidence = "http.status", f"status {page.status}"
    elif page.content_type and page.content_type not in (*HTML, *TEXT):
        reject, evidence = "http.type", f"content type {page.content_type[:80]}"
    return Page(page.url, page.status, page.content_type, None, b"", reject, evidence) if reject else page


def _read(reader: WarcReader, limit: int = MAX_PAGE_BYTES + 1) -> bytes:
    """At most `limit` bytes: enough to see that a page is too long."""
    parts, left = [], limit
    while left > 0 and (part := reader.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def decoded(body: bytes, headers: Mapping[str, Sequence[str]], cut: bool) -> bytes:
    """Undo transfer and content encodings that are really there (crawlers often store a body already decoded).

    `headers` have names in lower case. A little more than MAX_PAGE_BYTES at most come out.

    Raises OSError, ValueError or zlib.error for a damaged body, unless the record says that it was `cut`.
    """
    chunked = "chunked" in ",".join(headers.get("transfer-encoding", ())).lower()
    if chunked and re.match(rb"[0-9a-fA-F]{1,8}[ \t]*(?:;[^\r\n]{0,200})?\r?\n", body):
        body = _part(ChunkedReader(io.BytesIO(body)), cut)
    for name in reversed(",".join(headers.get("content-encoding", ())).lower().split(",")):
        name = name.strip()
        if name in ("gzip", "x-gzip", "deflate"):
            body = _inflated(body, cut)
        elif name == "br" and body.lstrip()[:1] != b"<":
            body = _part(BrotliReader(io.BytesIO(body)), cut)
        elif name == "zstd" and body[:4] == _ZSTD:
            body = _part(ZstdReader(io.BytesIO(body)), cut)
    return body


def _part(reader: WarcReader, cut: bool) -> bytes:
    """What a decoder gives, up to where a body was cut."""
    parts = io.BytesIO()
    try:
        while parts.tell() <= MAX_PAGE_BYTES and (part := reader.read(1 << 16)):
            parts.write(part)
    except (OSError, ValueError):
        if not cut:
            raise
    return parts.getvalue()


def _inflated(body: bytes, cut: bool) -> bytes:
    """Gzip or zlib data; anything else comes back as it is."""
    if body[:2] != b"\x1f\x8b" and not (body[:1] == b"\x78" and int.from_bytes(body[:2]) % 31 == 0):
        return body
    decoder = zlib.decompressobj(wbits=47)  # either header
    data = decoder.decompress(body, MAX_PAGE_BYTES + 1)
    if not cut and not decoder.eof and len(data) <= MAX_PAGE_BYTES:
        raise ValueError("the compressed body is cut off")
    return data
