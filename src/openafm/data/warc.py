"""Read WARC files (gzip, zstd or plain) into pages for the `extract` step; broken records become counted rejects."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

MAX_PAGE_BYTES = 8 * 1024 * 1024


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


def _page(record: WarcRecord, url: str) -> Page:
    http = record.http_headers
    if http is None:
        return Page(url, 0, "", None, b"", "warc.no-http", "the response has no HTTP header")
    status = http.status_code or 0
    kind = (record.http_content_type or "").lower()
    body = record.reader.read(MAX_PAGE_BYTES + 1)
    broken = ""
    if not url or urlsplit(url).scheme not in ("http", "https"):
        broken, evidence = "warc.no-url", f"the target URI is {url[:80]!r}"
    elif len(body) > MAX_PAGE_BYTES and not is_robots(url):  # of rules the beginning counts (RFC 9309, section 2.5)
        broken, evidence = "too-large", f"more than {MAX_PAGE_BYTES} bytes"
    elif not is_robots(url) and status != 200:
        broken, evidence = "http.status", f"status {status}"
    elif not is_robots(url) and kind and kind not in ("text/html", "application/xhtml+xml"):
        broken, evidence = "http.type", f"content type {kind}"
    if broken:
        return Page(url, status, kind, None, b"", broken, evidence)
    return Page(url, status, kind, record.http_charset, body)


def is_robots(url: str) -> bool:
    """Tell whether the URL is a site's robots.txt."""
    return urlsplit(url).path == "/robots.txt"


def _url(record: WarcRecord) -> str:
    return (record.headers.get("WARC-Target-URI") or "").strip("<> ")


def _broken(url: str, error: object) -> Page:
    return Page(url, 0, "", None, b"", "warc.broken", str(error)[:200])


def _safe_page(record: WarcRecord) -> Page:
    """Turn whatever one record's bytes provoke in the parser into a reject of that record."""
    url = ""
    try:
        url = _url(record)
        if record.headers.get("WARC-Block-Digest") and not record.verify_block_digest():
            return _broken(url, "the block differs from its digest: cut off or changed")
        record.parse_http(auto_decode="all")
        return _page(record, url)
    except (OSError, ValueError) as error:
        return _broken(url, f"{type(error).__name__}: {error}")


def _next_member(data: bytes, start: int) -> int:
    """Return where the next compressed record may begin after `start`, or -1."""
    found = [at for magic in (b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd") if (at := data.find(magic, start)) >= 0]
    return min(found, default=-1)


def pages(path: Path, wanted: Callable[[str], bool] = lambda url: True) -> Iterator[Page]:
    """Yield the responses of one file; a damaged record is yielded as a "warc.broken" and reading goes on behind it.

    `wanted` may spare the work for records whose URL it turns down.
    Every record is a compression member of its own (WARC 1.1, annex D), so after damage the next member is sought.
    """
    data, start, found = path.read_bytes(), 0, 0
    while start >= 0:
        last = start - 1
        try:
            stream = io.BytesIO(data[start:])
            for record in ArchiveIterator(
                stream, record_types=WarcRecordType.any_type, parse_http=False, quirks_mode=True
            ):
                found, last = found + 1, start + record.stream_pos
                if record.record_type == WarcRecordType.response and wanted(_url(record)):
                    yield _safe_page(record)
            start = -1
        except (OSError, ValueError) as error:
            if last >= start or start == 0:
                yield _broken("", f"{path.name} behind byte {max(last, 0)}: {error}")
            start = _next_member(data, last + 2)
    if not found:
        yield _broken("", f"{path.name} holds no WARC record")
