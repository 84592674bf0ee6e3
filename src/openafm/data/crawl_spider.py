"""The part of the crawler that is Scrapy's: one visit after the other on each host, many hosts at once.

Scrapy downloads, decodes and times out; which address is next, and whether it may be asked, is decided here. Imported
only where Scrapy is installed (`openafm.data.crawl`).
"""

import asyncio
import heapq
import ipaddress
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from resiliparse.parse.html import HTMLTree
from scrapy import Request, Spider, signals
from scrapy.crawler import AsyncCrawlerProcess
from scrapy.exceptions import DownloadCancelledError, DownloadTimeoutError, IgnoreRequest, StopDownload
from scrapy.http import Response
from scrapy.resolver import CachingThreadedResolver
from w3lib.url import safe_url_string

from openafm.data import optout, robots
from openafm.data.crawl_archive import Archive
from openafm.data.extract import UndecodableError, decode
from openafm.data.frontier import Frontier, Limits, Site, Waiting, origin_of
from openafm.data.warc import HTML, TEXT, decoded

MAX_REDIRECTS = 5
MAX_PAUSE = 3600.0
"""Seconds: a server that asks for a longer pause (Retry-After) is asked again in the next crawl."""
_REFUSED: set[str] = set()  # names that led to an address that is not public


def private(address: str) -> bool:
    """Whether an IP address is not one of the public internet."""
    ip = ipaddress.ip_address(address)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return not (mapped or ip).is_global or (mapped or ip).is_multicast


class PublicResolver(CachingThreadedResolver):
    """Names that lead into a private network do not resolve: what is checked is the address that is connected to."""

    def getHostByName(self, name: str, timeout: Sequence[int] = ()) -> Any:  # noqa: N802, Twisted's name
        """Look a name up; raises OSError for a private address."""

        def check(address: str) -> str:
            """The address itself if it is public; raises OSError, and notes the name, if it is private."""
            if private(address):
                _REFUSED.add(name)
                raise OSError(f"{name} is at the private address {address}")
            return address

        return super().getHostByName(name, timeout).addCallback(check)


def links_of(html: str, url: str) -> Iterator[str]:
    """Addresses that a page links to, in their order; links marked rel=nofollow are left."""
    tree = HTMLTree.parse(html)
    if tree.document is None:
        return
    base = tree.document.query_selector("base[href]")
    try:
        start = urljoin(url, (base.getattr("href") or "").strip()) if base is not None else url
    except ValueError:
        start = url
    for tag in tree.document.query_selector_all("a[href], area[href]"):
        if "nofollow" not in (tag.getattr("rel") or "").lower().split():
            try:
                link = urljoin(start, (tag.getattr("href") or "").strip()).partition("#")[0]
                parts = urlsplit(link)
                if parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) > 0:
                    yield safe_url_string(link)
            except ValueError:  # not an address at all
                continue


class PoliteSpider(Spider):
    """Visits what waits in the frontier."""

    name = robots.AGENT

    def __init__(self, config: Any, frontier: Frontier, archive: Archive, report: Callable[..., None]) -> None:
        super().__init__()
        self.config = config
        self.limits: Limits = config.limits
        self.frontier, self.archive, self.report = frontier, archive, report
        self.told = 0.0
        self.end = time.monotonic() + self.limits.seconds
        self.queue: list[tuple[float, str]] = []
        self.known: set[str] = set()
        self.busy = 0
        self.taken = frontier.counts().get("taken", 0)

    @classmethod
    def from_crawler(cls, crawler: Any, *args: Any, **kwargs: Any) -> "PoliteSpider":
        """Scrapy's way to make a spider; connects the handlers that stop a download early."""
        spider = super().from_crawler(crawler, *args, **kwargs)
        crawler.signals.connect(spider._headers, signal=signals.headers_received)
        crawler.signals.connect(spider._bytes, signal=signals.bytes_received)
        return spider

    def _headers(self, headers: Any, request: Request) -> None:
        kind = (headers.get("Content-Type") or b"").decode("latin-1").partition(";")[0].strip().lower()
        if request.meta["page"] and kind and kind not in (*HTML, *TEXT):
            raise StopDownload(fail=False)

    def _bytes(self, data: bytes, request: Request) -> None:
        request.meta["received"] = request.meta.get("received", 0) + len(data)
        if not request.meta["page"] and request.meta["received"] > robots.MAX_BYTES:
            raise StopDownload(fail=False)

    async def start(self) -> AsyncIterator[Request]:
        """Run the crawl inside Scrapy's start-up, which keeps the engine going until it returns."""
        for origin in self.frontier.origins():
            self._enqueue(origin, 0.0)
        workers = [asyncio.ensure_future(self._work()) for _ in range(self.limits.hosts_at_once)]
        try:
            await asyncio.gather(*workers)
        except Exception as error:
            self.frontier.failure = error
            raise
        finally:
            for worker in workers:
                worker.cancel()
            self.frontier.commit(self.archive.path)
        return
        yield

    def _enqueue(self, origin: str, due: float) -> None:
        self.known.add(origin)
        heapq.heappush(self.queue, (due, origin))

    async def _work(self) -> None:
        """Take the origin that is due first, visit one of its pages, and put it back behind its pause."""
        while time.monotonic() < self.end and (self.queue or self.busy):
            if not self.queue or self.queue[0][0] > time.time():
                await asyncio.sleep(0.02)
                continue
            _, origin = heapq.heappop(self.queue)
            self.busy += 1
            try:
                pause = await self._turn(origin)
                following = self.frontier.next(origin)
                if following is None:
                    self.known.discard(origin)
                else:
                    due = following if isinstance(following, float) else 0.0
                    self._enqueue(origin, max(due, time.time() + pause))
            finally:
                self.busy -= 1

    async def _turn(self, origin: str) -> float:
        """One page of an origin; returns the seconds to leave it alone afterwards."""
        page = self.frontier.next(origin)
        if not isinstance(page, Waiting):
            return 0.0
        site = self.frontier.site(origin)
        if not site.fetched or time.time() - site.fetched > robots.CACHE_SECONDS:
            site = await self._rules(origin, site)
            self.frontier.commit(self.archive.path)
            return self._pause(site)
        pause = self._pause(site)
        if site.visits >= self.limits.pages_per_host:
            self.frontier.close_site(origin, "pages-per-host", f"{site.visits} requests")
        elif self._may(page, site):
            self.frontier.keep(origin, replace(site, visits=site.visits + 1))
            await self._visit(page, pause)
        else:
            pause = 0.0  # nothing was asked
        self.frontier.commit(self.archive.path)
        if time.monotonic() > self.told + 1:
            self.told = time.monotonic()
            self.report(f"pages taken ({self.frontier.waiting():,} addresses wait)", self.taken, None)
        return pause

    def _may(self, page: Waiting, site: Site) -> bool:
        """Whether the site's rules let us have the page; a refusal is recorded."""
        verdict = robots.allowed_by_status(site.robots_status)
        if verdict is False:
            self.frontier.decide(page, "robots.unreachable", f"robots.txt answered {site.robots_status or 'nothing'}")
        elif verdict is None and not robots.allowed(site.robots, page.url, self.config.user_agent):
            self.frontier.decide(page, "robots", f"robots.txt shuts {robots.AGENT} out of this path")
        elif optout.tdmrep_reserved(site.tdmrep, page.url):
            self.frontier.decide(page, optout.TDM, "/.well-known/tdmrep.json")
        else:
            return True
        return False

    def _pause(self, site: Site) -> float:
        return max(self.limits.delay_seconds, robots.parse(site.robots).delay(self.config.user_agent))

    async def _rules(self, origin: str, site: Site) -> Site:
        """The site with its robots.txt and tdmrep.json asked for."""
        status, body = await self._site_file(origin, "/robots.txt")
        site = replace(site, robots_status=status, robots=body if 200 <= status < 300 else b"", fetched=time.time())
        if robots.allowed_by_status(status) is not False:
            await asyncio.sleep(self._pause(site))
            found, answer = await self._site_file(origin, "/.well-known/tdmrep.json")
            site = replace(site, tdmrep=answer if found == 200 else b"")
        self.frontier.keep(origin, site)
        return site

    async def _site_file(self, origin: str, path: str) -> tuple[int, bytes]:
        """A file that speaks for a site: (status, body) behind redirects; 0 for no answer, 404 behind too many of them.

        RFC 9309, section 2.3.1: errors of the network and 5xx are tried again, then they stand.
        """
        url, tries, hops = origin + path, 0, 0
        while True:
            answer = await self._download(url, page=False)
            failed = isinstance(answer, str) or answer.status >= 500 or answer.status == 429
            if failed and tries < self.limits.retries:
                tries += 1
                await asyncio.sleep(self.limits.delay_seconds * 2**tries)
            elif isinstance(answer, str):
                return 0, b""
            elif 300 <= answer.status < 400 and (target := self._target(url, answer)):
                hops += 1
                if hops > robots.MAX_REDIRECTS:
                    return 404, b""
                url = target
                await asyncio.sleep(self.limits.delay_seconds)
            else:
                if path == "/robots.txt":
                    self.archive.write(answer, origin + path)
                return answer.status, answer.body

    def _target(self, url: str, answer: Response) -> str:
        """Where a redirect leads; "" for nowhere."""
        place = (answer.headers.get("Location") or b"").decode("utf-8", "replace").strip()
        try:
            target = safe_url_string(urljoin(url, place).partition("#")[0]) if place else ""
            return target if urlsplit(target).scheme in ("http", "https") and urlsplit(target).hostname else ""
        except ValueError:
            return ""

    async def _download(self, url: str, page: bool) -> Response | str:
        """The answer to a request, or why there is none: a reason of pages.jsonl."""
        host = urlsplit(url).hostname or ""
        try:
            literal = not self.config.allow_private and private(host)
        except ValueError:
            literal = False  # a name: the resolver sees to it
        if literal:
            return "private-address"
        limit = self.limits.page_bytes if page else 0  # of robots.txt the beginning is read, see _bytes
        meta = {"page": page, "download_timeout": self.limits.timeout_seconds, "download_maxsize": limit}
        try:
            answer = await self.crawler.engine.download_async(Request(url, meta=meta, dont_filter=True))
        except (DownloadCancelledError, IgnoreRequest):
            return "too-large"
        except (TimeoutError, DownloadTimeoutError):
            return "timeout"
        except asyncio.CancelledError:
            raise
        except Exception as error:  # whatever a server provokes in the network stack ends one address, not the crawl
            return "private-address" if host in _REFUSED else f"network.{type(error).__name__.removesuffix('Error')}"
        if not self.config.allow_private and answer.ip_address is not None and private(str(answer.ip_address)):
            return "private-address"
        try:
            body = decoded(answer.body, _headers(answer), cut=not page)
        except (OSError, ValueError, zlib.error):
            return "content-encoding"
        return "too-large" if page and len(body) > limit else answer.replace(body=body)

    async def _visit(self, page: Waiting, pause: float) -> None:
        answer = await self._download(page.url, page=True)
        if isinstance(answer, str):
            again = answer == "timeout" or answer.startswith("network.")
            if again and page.tries < self.limits.retries:
                self.frontier.postpone(page, pause * 2**page.tries)
            else:
                self.frontier.decide(page, answer, f"after {page.tries + 1} tries" if again else "")
        elif answer.status == 429 or answer.status >= 500:
            wait = max(pause * 2**page.tries, _retry_after(answer))
            if page.tries < self.limits.retries and wait <= MAX_PAUSE:
                self.frontier.postpone(page, wait)
            else:
                self.frontier.decide(page, "http.status", str(answer.status), status=answer.status)
        elif 300 <= answer.status < 400:
            self._redirected(page, answer)
        else:
            self._judge(page, answer)

    def _redirected(self, page: Waiting, answer: Response) -> None:
        target, chain = self._target(page.url, answer), (*page.chain, page.url)
        if not target:
            self.frontier.decide(page, "http.status", f"{answer.status} to nowhere", status=answer.status)
        elif target in chain:
            self.frontier.decide(page, "redirect.loop", f"back to {target}"[:300], status=answer.status)
        elif len(chain) > MAX_REDIRECTS:
            self.frontier.decide(page, "redirect.too-many", f"{len(chain)} in a row", status=answer.status)
        else:
            self.frontier.decide(page, "redirect", f"to {target}"[:300], status=answer.status)
            self._add([target], page.depth, page.url, chain)

    def _judge(self, page: Waiting, answer: Response) -> None:
        """Take a page or say why not, and let its links wait."""
        kind = (answer.headers.get("Content-Type") or b"").decode("latin-1").partition(";")[0].strip().lower()
        said = optout.of_page(_headers(answer), answer.body if kind not in TEXT else b"", self.config.user_agent)
        told = {"status": answer.status, "bytes": len(answer.body)}
        if answer.status != 200:
            self.frontier.decide(page, "http.status", str(answer.status), **told)
        elif kind and kind not in (*HTML, *TEXT):
            self.frontier.decide(page, "http.type", kind[:80], **told)
        else:
            links = [] if said.nofollow or kind in TEXT else self._links(page, answer)
            kept = links[: self.limits.links_per_page]
            more = {"links": len(kept)} | ({"links_left": len(links) - len(kept)} if len(links) > len(kept) else {})
            if said.reason:
                self.frontier.decide(page, said.reason, "header or meta tag", **told, **more)
            else:
                self.archive.write(answer, page.url)
                self.taken += 1
                self.frontier.decide(page, "", "", **told, **more)
            self._add(kept, page.depth + 1, page.url)

    def _links(self, page: Waiting, answer: Response) -> list[str]:
        charset = (answer.headers.get("Content-Type") or b"").decode("latin-1").lower().partition("charset=")[2]
        try:
            html = decode(answer.body, charset.split(";")[0].strip(" \"'") or None)
        except UndecodableError:
            return []
        return list(dict.fromkeys(links_of(html, page.url)))

    def _add(self, urls: Sequence[str], depth: int, via: str, chain: tuple[str, ...] = ()) -> None:
        for url in urls:
            if self.frontier.add(url, depth, via, chain) and origin_of(url) not in self.known:
                self._enqueue(origin_of(url), 0.0)


def _headers(answer: Response) -> dict[str, list[str]]:
    """Names in lower case, and their values."""
    return {
        name.decode("latin-1").lower(): [value.decode("latin-1") for value in values]
        for name, values in answer.headers.items()
    }


def _retry_after(answer: Response) -> float:
    value = (answer.headers.get("Retry-After") or b"").decode("latin-1").strip()
    return float(value) if value.isascii() and value.isdigit() and len(value) < 9 else 0.0


def _settings(config: Any) -> dict[str, Any]:
    """Scrapy without what is done here by other rules, or not at all."""
    names = "ROBOTSTXT_OBEY REDIRECT METAREFRESH RETRY COOKIES COMPRESSION HTTPPROXY TELNETCONSOLE HTTPCACHE REFERER"
    off = [name if name.endswith("OBEY") else f"{name}_ENABLED" for name in names.split()]
    resolver = {} if config.allow_private else {"TWISTED_DNS_RESOLVER": f"{__name__}.PublicResolver"}
    return {
        **dict.fromkeys(off, False),
        **resolver,
        "USER_AGENT": config.user_agent,
        "DEFAULT_REQUEST_HEADERS": {
            "Accept": "text/html,application/xhtml+xml;q=0.9,text/plain;q=0.8",
            "Accept-Encoding": "gzip, deflate, br",
        },
        "DOWNLOAD_HANDLERS": dict.fromkeys(("data", "file", "ftp", "s3")),
        "DOWNLOAD_DELAY": 0,
        "CONCURRENT_REQUESTS": config.limits.hosts_at_once,
        "LOG_LEVEL": "ERROR",
    }


def run(
    config: Any,
    seeds: Sequence[str],
    hosts: Sequence[str],
    out: Path,
    report: Callable[[str, float, float | None], None],
) -> dict[str, int]:
    """Crawl until nothing waits or the time is over; addresses by reason."""
    frontier = Frontier(out, hosts, config.limits)
    archive = Archive(out / "warc", config.user_agent)
    for seed in seeds:
        frontier.add(safe_url_string(seed.partition("#")[0]), 0)
    frontier.commit()
    process = AsyncCrawlerProcess(_settings(config))
    process.crawl(PoliteSpider, config=config, frontier=frontier, archive=archive, report=report)
    process.start()
    archive.close()
    counts = frontier.counts()
    frontier.close()
    if frontier.failure is not None:
        raise RuntimeError("the crawl broke off; run it again to go on") from frontier.failure
    return counts
