"""HTML pages into WARC files as a crawl leaves them: one file a host, robots.txt first, HTTP headers on every record.

Nothing in a file depends on when or where it was written: dates come from the catalogue, record ids from the URLs.
ISO 28500 (WARC 1.1); RFC 9309 for robots.txt. Part of the step `fetch`.
"""

import io
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from openafm.data.readers import Page


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


def write_host(path: Path, host: str, pages: Sequence[Page], rules: Sequence[str], date: str) -> None:
    """Write `pages` (in the order given) and their robots.txt to the gzipped WARC file `path`."""
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True, warc_version="1.1")
        _write(writer, f"https://{host}/robots.txt", robots_txt(rules), "text/plain; charset=utf-8", date)
        for page in pages:
            write_page(writer, page, date)


def write_page(writer: WARCWriter, page: Page, date: str) -> None:
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
