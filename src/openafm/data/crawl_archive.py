"""HTML pages into WARC files as a crawl leaves them: one file a host, robots.txt first, HTTP headers on every record.

Nothing in a file depends on when or where it was written: dates come from the catalogue, record ids from the URLs.
ISO 28500 (WARC 1.1); RFC 9309 for robots.txt. Part of the step `fetch`.
"""

import http.client
import io
import os
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

if TYPE_CHECKING:
    from scrapy.http import Response

    from openafm.data.readers import Page

ARCHIVE_BYTES = 1 << 29
"""A crawl's file that has grown to this is followed by a new one."""


def robots_txt(rules: Sequence[str]) -> bytes:
    """A robots.txt that shuts every crawler out of `rules`, and one crawler out of everything."""
    lines = ["# Crawl politely.", "User-agent: *", *(f"Disallow: {rule}" for rule in rules), "Allow: /robots.txt"]
    return "\n".join([*lines, "Crawl-delay: 1", "", "User-agent: GreedyBot", "Disallow: /", ""]).encode()


def choose_rules(urls: Sequence[str]) -> list[str]:
    """Path prefixes for a host that names none: its largest folder with at most 15% of the pages, else one page."""
    paths = sorted(urlsplit(url).path for url in urls)
    folders = Counter(path[: end + 1] for path in paths for end, char in enumerate(path) if char == "/")
    small = [(-count, folder) for folder, count in folders.items() if folder != "/" and count <= 0.15 * len(paths)]
    if small:
        return [min(small)[1]]
    return [paths[len(paths) // 2]] if len(paths) > 4 else []


def write_host(path: Path, host: str, pages: Sequence["Page"], rules: Sequence[str], date: str) -> None:
    """Write `pages` (in the order given) and their robots.txt to the gzipped WARC file `path`."""
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True, warc_version="1.1")
        _write(writer, f"https://{host}/robots.txt", robots_txt(rules), "text/plain; charset=utf-8", date)
        for page in pages:
            write_page(writer, page, date)


def write_page(writer: WARCWriter, page: "Page", date: str) -> None:
    """Write one page as a response record."""
    _write(writer, page.url, page.html, page.content_type, date)


def _write(writer: WARCWriter, url: str, body: bytes, content_type: str, date: str) -> None:
    headers = [
        ("Content-Type", content_type),
        ("Content-Length", str(len(body))),
        ("Server", "nginx"),
        ("Vary", "Accept-Encoding"),
    ]
    record = writer.create_warc_record(
        url,
        "response",
        payload=io.BytesIO(body),
        http_headers=StatusAndHeaders("200 OK", headers, protocol="HTTP/1.1"),
        warc_headers_dict={"WARC-Date": date, "WARC-Record-ID": f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, url)}>"},
    )
    writer.write_record(record)


class Archive:
    """WARC files of a crawl in `folder`, each begun with who crawled; a new one when the last has grown large."""

    def __init__(self, folder: Path, user_agent: str) -> None:
        self.folder, self.user_agent = folder, user_agent
        self._open(max(0, len(list(folder.glob("crawl-*.warc.gz"))) - 1))

    def _open(self, number: int) -> None:
        self.number = number
        self.path = self.folder / f"crawl-{number:05}.warc.gz"
        self.file = self.path.open("ab")
        self.writer = WARCWriter(self.file, gzip=True, warc_version="1.1")
        if not self.path.stat().st_size:
            about = {"software": "openafm", "format": "WARC File Format 1.1", "robots": "RFC 9309"}
            about |= {"http-header-user-agent": self.user_agent}
            self.writer.write_record(self.writer.create_warcinfo_record(self.path.name, about))
            self.file.flush()

    def write(self, answer: "Response", url: str) -> None:
        """Write the request for `url` and the response to it, its body decoded (so without its encoding headers)."""
        if self.file.tell() > ARCHIVE_BYTES:
            self.close()
            self._open(self.number + 1)
        assert answer.request is not None, "Scrapy sets the request of what it downloaded"
        asked = [
            (name.decode("latin-1"), b", ".join(values).decode("latin-1"))
            for name, values in answer.request.headers.items()
        ]
        path = urlsplit(url)._replace(scheme="", netloc="").geturl() or "/"
        request = StatusAndHeaders(
            f"GET {path} HTTP/1.1", [("Host", urlsplit(url).netloc), *asked], is_http_request=True
        )
        status = f"{answer.status} {http.client.responses.get(answer.status, 'Unknown')}"
        given = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, values in answer.headers.items()
            for value in values
            if name.lower() not in (b"content-encoding", b"content-length", b"transfer-encoding")
        ]
        response = StatusAndHeaders(status, [*given, ("Content-Length", str(len(answer.body)))], protocol="HTTP/1.1")
        more = {"WARC-IP-Address": str(answer.ip_address)} if answer.ip_address else {}
        first = self.writer.create_warc_record(
            url, "response", io.BytesIO(answer.body), http_headers=response, warc_headers_dict=more
        )
        second = self.writer.create_warc_record(url, "request", io.BytesIO(b""), http_headers=request)
        self.writer.write_request_response_pair(second, first)
        self.file.flush()

    def close(self) -> None:
        """Put the last file on disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
