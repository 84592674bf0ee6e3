"""The crawler's memory: which addresses wait, which are decided and why, and what is known of each site.

Everything is in one SQLite file, committed page by page together with the sizes of the files written so far, so a
killed crawl goes on where it was: files are cut back to what was committed. `pages.jsonl` says for every address that
was met whether it was taken, and if not, why. Used by `openafm.data.crawl`.
"""

import json
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from openafm.stage import Config

CRAWL, STATE, PAGES = "crawl.json", "state.sqlite", "pages.jsonl"
_TRACKING = re.compile(
    r"utm_\w+|fbclid|gclid|mc_[ce]id|sid|s?session_?(?:id)?|phpsessid|jsessionid|aspsessionid\w*", re.I
)
_SESSION = re.compile(r";(?:jsessionid|phpsessid|sid)=[^/?#]*", re.I)
SUFFIXES = frozenset(
    "7z apk avi bin bmp bz2 css csv dmg doc docx eot epub exe flac gif gz ico iso jar jpeg jpg js json m4a m4v mov mp3"
    " mp4 mpeg mpg msi odt ogg otf pdf png ppt pptx ps rar rss svg tar tgz tif tiff ttf wasm wav webm webp wmv woff"
    " woff2 xls xlsx xml xz zip zst".split()
)
"""Files that are no pages by their names; anything else is told by its Content-Type."""
_SCHEMA = """
create table if not exists urls (id integer primary key, key text unique, url text, origin text, depth int, chain text,
  via text, waiting int, tries int default 0, due real default 0, reason text default '');
create index if not exists waiting on urls (origin, depth, id) where waiting;
create table if not exists shapes (shape text primary key, n int);
create table if not exists sites (origin text primary key, visits int default 0, robots_status int, robots blob,
  tdmrep blob, fetched real default 0);
create table if not exists sizes (file text primary key, bytes int);
"""


class Limits(Config):
    """How far a crawl goes. What lies behind a limit is recorded with the limit's name."""

    depth: int = 8
    """Links from a seed."""
    pages_per_host: int = 10_000
    """Requests to one host, robots.txt aside."""
    pages_per_shape: int = 1_000
    """Addresses of a host that differ in numbers and query values alone: calendars, endless lists."""
    page_bytes: int = 8 * 1024 * 1024
    """Longer bodies are not taken."""
    links_per_page: int = 2_000
    seconds: float = 3600.0
    """Of the whole crawl; run it again to go on."""
    timeout_seconds: float = 30.0
    """Of one answer, from the first byte sent to the last received."""
    delay_seconds: float = 1.0
    """Between the end of an answer and the next request to that host; a longer Crawl-delay wins."""
    retries: int = 2
    """After errors of the network, 429 and 5xx."""
    hosts_at_once: int = 16


@dataclass(frozen=True)
class Waiting:
    """An address that may be visited. `chain` are the redirects that led to it."""

    id: int
    url: str
    origin: str
    depth: int
    chain: tuple[str, ...]
    tries: int


@dataclass(frozen=True)
class Site:
    """What is known of an origin; `fetched` is 0 before its robots.txt was asked for."""

    visits: int = 0
    robots_status: int = 0
    robots: bytes = b""
    tdmrep: bytes = b""
    fetched: float = 0.0


def origin_of(url: str) -> str:
    """Scheme, host and port: what robots.txt holds for."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def host_of(url: str) -> str:
    """Host without a leading www."""
    return (urlsplit(url).hostname or "").removeprefix("www.")


def key_of(url: str) -> str:
    """What two spellings of one page share: parameters sorted, session and campaign marks left out."""
    parts = urlsplit(url)
    query = sorted(pair for pair in parse_qsl(parts.query, keep_blank_values=True) if not _TRACKING.fullmatch(pair[0]))
    path = _SESSION.sub("", parts.path) or "/"
    return urlunsplit((parts.scheme, parts.netloc.lower(), path, "&".join("=".join(pair) for pair in query), ""))


def shape_of(url: str) -> str:
    """The address with every number as 0 and without the values of its parameters."""
    parts = urlsplit(url)
    names = sorted({name for name, _ in parse_qsl(parts.query, keep_blank_values=True)})
    return f"{parts.netloc}{re.sub('[0-9]+', '0', parts.path)}?{'&'.join(names)}"


def refusal(url: str, depth: int, hosts: Sequence[str], limits: Limits) -> tuple[str, str]:
    """Why an address is not even asked for, by its form alone: (reason, evidence); ("", "") lets it through."""
    parts = urlsplit(url)
    folders = [part for part in parts.path.split("/") if part]
    _, dot, suffix = parts.path.rsplit("/", 1)[-1].lower().rpartition(".")
    if not any(host_of(url).endswith(host[1:]) if host.startswith("*.") else host_of(url) == host for host in hosts):
        return "host", host_of(url)
    if depth > limits.depth:
        return "depth", f"{depth} links from a seed"
    if len(url) > 2_000:
        return "trap.length", f"{len(url)} characters"
    if len(folders) > 16 or (folders and max(Counter(folders).values()) > 3):
        return "trap.path", f"{len(folders)} folders, one of them {max(Counter(folders).values())} times"
    if dot and suffix in SUFFIXES:
        return "suffix", f".{suffix}"
    return "", ""


class Frontier:
    """Waiting and decided addresses of a crawl in `folder`; `hosts` are those that may be asked."""

    def __init__(self, folder: Path, hosts: Sequence[str], limits: Limits) -> None:
        self.folder, self.hosts, self.limits = folder, hosts, limits
        self.database = sqlite3.connect(folder / STATE)
        self.database.executescript("pragma journal_mode=wal; pragma synchronous=normal;" + _SCHEMA)
        self._cut_back()
        self.pages = (folder / PAGES).open("ab")
        self.failure: Exception | None = None
        """What broke the crawl off."""

    def _cut_back(self) -> None:
        """Undo what a killed crawl wrote to files and did not commit."""
        for path in (self.folder / PAGES, *sorted((self.folder / "warc").glob("*.warc.gz"))):
            size = self._one("select bytes from sizes where file = ?", path.relative_to(self.folder).as_posix())
            if path.exists():
                with path.open("r+b") as file:
                    file.truncate(min(size or 0, path.stat().st_size))

    def _one(self, query: str, *values: object) -> int | None:
        row = self.database.execute(query, values).fetchone()
        return row[0] if row else None

    def add(self, url: str, depth: int, via: str = "", chain: tuple[str, ...] = ()) -> bool:
        """Let an address wait, unless it is known; one that is refused is recorded. True when it waits."""
        key = url if chain else key_of(url)  # a redirect may add nothing but a session's mark
        if self._one("select 1 from urls where key = ?", key):
            return False
        reason, evidence = refusal(url, depth, self.hosts, self.limits)
        if not reason:
            n = (self._one("select n from shapes where shape = ?", shape_of(url)) or 0) + 1
            if n > self.limits.pages_per_shape:
                reason, evidence = "trap.shape", f"{n - 1} addresses like {shape_of(url)}"[:300]
            else:
                self.database.execute("insert or replace into shapes values (?, ?)", (shape_of(url), n))
        values = (key, url, origin_of(url), depth, json.dumps(chain), via, not reason, reason)
        self.database.execute(
            "insert into urls (key, url, origin, depth, chain, via, waiting, reason) values (?, ?, ?, ?, ?, ?, ?, ?)",
            values,
        )
        if reason:
            self._write(url, reason, evidence, depth, via)
        return not reason

    def next(self, origin: str) -> Waiting | float | None:
        """The address of an origin to visit now, or when the next one is due (seconds since the epoch), or None."""
        query = "select id, url, origin, depth, chain, tries, due from urls where waiting and origin = ?"
        row = self.database.execute(
            f"{query} and due <= ? order by depth, id limit 1", (origin, time.time())
        ).fetchone()
        if row is None:
            query = "select min(due) from urls where waiting and origin = ?"
            due: float | None = self.database.execute(query, (origin,)).fetchone()[0]
            return due
        return Waiting(row[0], row[1], row[2], row[3], tuple(json.loads(row[4])), row[5])

    def origins(self) -> list[str]:
        """Origins with waiting addresses."""
        return [
            row[0] for row in self.database.execute("select distinct origin from urls where waiting order by origin")
        ]

    def waiting(self) -> int:
        """How many addresses wait."""
        return self._one("select count(*) from urls where waiting") or 0

    def site(self, origin: str) -> Site:
        """What is known of an origin."""
        query = "select visits, robots_status, robots, tdmrep, fetched from sites where origin = ?"
        row = self.database.execute(query, (origin,)).fetchone()
        return Site(*row) if row else Site()

    def keep(self, origin: str, site: Site) -> None:
        """Remember what is known of an origin."""
        values = (origin, site.visits, site.robots_status, site.robots, site.tdmrep, site.fetched)
        self.database.execute("insert or replace into sites values (?, ?, ?, ?, ?, ?)", values)

    def postpone(self, page: Waiting, seconds: float) -> None:
        """Try an address again later."""
        due = time.time() + seconds
        self.database.execute("update urls set tries = tries + 1, due = ? where id = ?", (due, page.id))

    def decide(self, page: Waiting, reason: str, evidence: str = "", **more: object) -> None:
        """Record what became of an address: reason "" when it was taken."""
        via = self._one("select via from urls where id = ?", page.id)
        self.database.execute("update urls set waiting = 0, reason = ? where id = ?", (reason, page.id))
        self._write(page.url, reason, evidence, page.depth, str(via or ""), **more)

    def close_site(self, origin: str, reason: str, evidence: str) -> None:
        """Decide all that waits of an origin."""
        while isinstance(page := self._any(origin), Waiting):
            self.decide(page, reason, evidence)

    def _any(self, origin: str) -> Waiting | None:
        query = "select id, url, depth, tries from urls where waiting and origin = ? limit 1"
        row = self.database.execute(query, (origin,)).fetchone()
        return Waiting(row[0], row[1], origin, row[2], (), row[3]) if row else None

    def _write(self, url: str, reason: str, evidence: str, depth: int, via: str, **more: object) -> None:
        row = {
            "url": url,
            "taken": not reason,
            "reason": reason,
            "evidence": evidence,
            "depth": depth,
            "via": via,
        } | more
        self.pages.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")

    def commit(self, archive: Path | None = None) -> None:
        """Make everything up to here outlive a kill; `archive` is the WARC file being written."""
        self.pages.flush()
        for path in (self.folder / PAGES, archive):
            if path is not None:
                name = path.relative_to(self.folder).as_posix()
                self.database.execute("insert or replace into sizes values (?, ?)", (name, path.stat().st_size))
        self.database.commit()

    def counts(self) -> dict[str, int]:
        """Addresses by reason; those taken as "taken", those that wait as "waiting"."""
        query = (
            "select case when waiting then 'waiting' when reason = '' then 'taken' else reason end, count(*) from urls"
        )
        return dict(self.database.execute(f"{query} group by 1 order by 1"))

    def close(self) -> None:
        """Commit and let go of the files."""
        self.commit()
        self.pages.close()
        self.database.close()
