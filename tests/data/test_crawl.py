"""The crawler against local sites full of traps; Scrapy's reactor runs in a process of its own, the command's."""

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest
from fastwarc.warc import ArchiveIterator, WarcRecordType

from openafm.data import ingest, own
from openafm.data.crawl import CrawlConfig, crawl, seeds_of
from openafm.data.frontier import Frontier, Limits, key_of, refusal, shape_of
from openafm.data.warc import is_robots, pages

pytest.importorskip("scrapy")
HTML = "text/html; charset=utf-8"
ROBOTS = "user-agent: *\ndisallow: /\n\nuser-agent: openafm\ndisallow: /private/\ncrawl-delay: 0\n"
TDMREP = json.dumps([{"location": "/mined/", "tdm-reservation": 1}, {"location": "/mined/free", "tdm-reservation": 0}])


def page(*links: str, head: str = "") -> bytes:
    anchors = "".join(f'<a href="{link}">{link}</a> ' for link in links)
    return f"<html><head><title>T</title>{head}</head><body><p>Some text here.</p>{anchors}</body></html>".encode()


class Site(BaseHTTPRequestHandler):
    """Answers from `paths`: {path: (status, headers, body)}, or a function that writes the answer."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.split("?")[0]
        self.server.asked.append((self.path, self.headers["User-Agent"], time.monotonic()))
        answer = self.server.paths.get(self.path) or self.server.paths.get(path) or self.server.paths.get("*")
        answer = answer(self) if callable(answer) else answer
        if answer is not None:
            status, headers, body = answer
            self.send_response(status)
            for name, value in ({"Content-Type": HTML, "Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(paths) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
        server.daemon_threads = True
        server.paths, server.asked, server.url = paths, [], f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def command(out: Path, *seeds: str, private: bool = True, **limits: object) -> list[str]:
    settings = {"delay_seconds": 0, "timeout_seconds": 1, "retries": 0, "seconds": 30} | limits
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    return [sys.executable, "-m", "openafm", "crawl", *seeds, "--out", str(out), *options, "--json"] + (
        ["--allow-private"] if private else []
    )


def run(out: Path, *seeds: str, **options: object) -> tuple[dict, dict[str, dict]]:
    done = subprocess.run(command(out, *seeds, **options), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (out / "pages.jsonl").read_text().splitlines()]
    assert len({row["url"] for row in rows}) == len(rows), "every address is decided once"
    return json.loads(done.stdout.splitlines()[-1])["counts"], {row["url"]: row for row in rows}


def slow(handler):
    handler.send_response(200)
    handler.send_header("Content-Type", HTML)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    try:
        for _ in range(40):
            handler.wfile.write(b"<p>")
            time.sleep(0.1)
    except OSError:
        pass


def endless(handler):
    handler.send_response(200)
    handler.send_header("Content-Type", HTML)
    handler.send_header("Connection", "close")
    handler.end_headers()
    try:
        for _ in range(10_000):
            handler.wfile.write(b"<p>more</p>" * 1_000)
    except OSError:
        pass


def calendar(handler):
    number = int(handler.path.rsplit("/", 1)[-1])
    return (
        200,
        {},
        page(f"/calendar/{number + 1}", f"/calendar/{number - 1}", f"/list?day={number}&sort=a", f"x/{number}"),
    )


def trap_paths() -> dict:
    links = (
        "private/x loop/a self many/1 huge bomb image photo.jpg slow gone broken cut noindex noai header tdm mined/x"
    )
    links += (
        " mined/free agent other latin utf16 nocharset calendar/0 deep/a/ long?q=" + "x" * 2_000 + " plain nofollow"
    )
    links += (
        " session page#part page?utm_source=x mailto:a@b.example javascript:1 http://elsewhere.example/x http://[bad"
    )
    redirects = {f"/many/{n}": (302, {"Location": f"/many/{n + 1}"}, b"") for n in range(1, 9)}
    return redirects | {
        "/robots.txt": (200, {"Content-Type": "text/plain"}, ROBOTS.encode()),
        "/.well-known/tdmrep.json": (200, {"Content-Type": "application/json"}, TDMREP.encode()),
        "/": (200, {}, page(*links.split())),
        "/page": (200, {"Set-Cookie": "a=b"}, page("/", "/page2")),
        "/page2": (301, {"Location": "/page3"}, b""),
        "/page3": (200, {"Content-Encoding": "gzip"}, gzip.compress(page("/"))),
        "/loop/a": (302, {"Location": "/loop/b"}, b""),
        "/loop/b": (302, {"Location": "/loop/a"}, b""),
        "/session": (302, {"Location": "/session?sid=1"}, b""),
        "/session?sid=1": (200, {}, page()),
        "/self": (302, {"Location": "/self"}, b""),
        "/huge": endless,
        "/bomb": (200, {"Content-Encoding": "gzip"}, gzip.compress(b"\0" * 20_000_000)),
        "/image": (200, {"Content-Type": "image/png"}, b"PNG" * 100),
        "/slow": slow,
        "/gone": (404, {}, b"gone"),
        "/broken": (503, {}, b"later"),
        "/cut": (200, {"Content-Length": "9999", "Connection": "close"}, page()),
        "/noindex": (200, {}, page("/behind-noindex", head='<meta name="robots" content="noindex">')),
        "/behind-noindex": (200, {}, page()),
        "/noai": (200, {}, page(head='<meta name="openafm" content="noai">')),
        "/header": (200, {"X-Robots-Tag": "noimageai"}, page()),
        "/tdm": (200, {"tdm-reservation": "1"}, page()),
        "/mined/x": (200, {}, page()),
        "/mined/free": (200, {}, page()),
        "/agent": (200, {"X-Robots-Tag": "otherbot: noindex"}, page()),
        "/other": (200, {}, page(head='<meta name="tdm-reservation" content="1">')),
        "/nofollow": (200, {"X-Robots-Tag": "nofollow"}, page("/never")),
        "/latin": (200, {"Content-Type": "text/html; charset=utf-8"}, '<a href="/b%C3%A4r">Bär'.encode("latin-1")),
        "/b%C3%A4r": (200, {}, page()),
        "/utf16": (200, {"Content-Type": "text/html"}, '<a href="/from-utf16">x</a>'.encode("utf-16")),
        "/from-utf16": (200, {}, page()),
        "/nocharset": (200, {"Content-Type": "text/html; charset=no-such-thing"}, page("/latin")),
        "/plain": (200, {"Content-Type": "text/plain"}, b"Only text: /never"),
        "*": lambda handler: calendar(handler) if "/calendar/" in handler.path else (200, {}, page("a/", "b/")),
    }  # fmt: skip


def test_a_site_of_traps(serve, tmp_path):
    site = serve(trap_paths())
    limits = {"depth": 5, "pages_per_shape": 6, "page_bytes": 1_000_000}
    counts, rows = run(tmp_path / "crawl", site.url + "/", **limits)
    reasons = {url.removeprefix(site.url).split("?q=")[0]: row["reason"] for url, row in rows.items()}
    assert {path: reasons.get(path) for path in _FATES} == _FATES
    assert counts["taken"] == sum(row["taken"] for row in rows.values()) and "waiting" not in counts
    assert counts["trap.shape"] >= 1 and counts["depth"] >= 1, counts
    assert len(site.asked) < 150, "calendars and endless folders are given up"
    asked = Counter(path for path, agent, _ in site.asked)
    assert {agent.split("/")[0] for _, agent, _ in site.asked} == {"openafm"}
    assert asked["/robots.txt"] == 1 and asked["/.well-known/tdmrep.json"] == 1
    assert not {"/private/x", "/mined/x", "/photo.jpg", "/never"} & asked.keys()
    assert max(asked.values()) <= 1
    _archive_is_whole(tmp_path / "crawl", site, rows)


_FATES = {
    "/": "", "/page": "", "/page2": "redirect", "/page3": "", "/private/x": "robots", "/loop/a": "redirect",
    "/loop/b": "redirect.loop", "/self": "redirect.loop",
    "/session": "redirect", "/session?sid=1": "", "/many/1": "redirect", "/many/6": "redirect.too-many",
    "/huge": "too-large", "/bomb": "too-large", "/image": "http.type", "/photo.jpg": "suffix", "/slow": "timeout",
    "/gone": "http.status", "/broken": "http.status", "/noindex": "noindex", "/behind-noindex": "", "/noai": "noai",
    "/header": "noimageai", "/tdm": "tdm-reservation", "/mined/x": "tdm-reservation", "/mined/free": "", "/agent": "",
    "/other": "tdm-reservation", "/latin": "", "/b%C3%A4r": "", "/utf16": "", "/from-utf16": "", "/nocharset": "",
    "/plain": "", "/nofollow": "", "/never": None, "/long": "trap.length", "http://elsewhere.example/x": "host",
}  # fmt: skip


def _archive_is_whole(out: Path, site, rows) -> None:
    """What extract reads is what was taken, and a request stands beside every response."""
    files = list(own.files(out))
    assert [path.parent.name for path in files] == ["warc"]
    with files[0].open("rb") as file:
        records = [
            (record.record_type, record.headers.get("WARC-Target-URI"), record.verify_block_digest())
            for record in ArchiveIterator(file, parse_http=False)
        ]
    assert records[0][0] == WarcRecordType.warcinfo and all(good for kind, _, good in records[1:])
    asked = Counter(url for kind, url, _ in records if kind == WarcRecordType.request)
    assert asked == Counter(url for kind, url, _ in records if kind == WarcRecordType.response)
    taken = {url for url, row in rows.items() if row["taken"]}
    found = {page.url: page for page in pages(files[0])}
    assert {url for url in found if not is_robots(url)} == taken and not any(page.reject for page in found.values())
    assert found[f"{site.url}/page3"].body == page("/"), "gzip undone, its header gone"
    known = ingest.read_robots(files)
    assert not ingest.allowed(f"{site.url}/private/x", known, "openafm")


def test_what_an_answer_to_robots_txt_means_and_limits_of_a_host(serve, tmp_path):
    """One crawl of many sites, each with another robots.txt; one of them has more pages than the limit."""
    rules, to_first = b"user-agent: *\ndisallow: /\n", (302, {"Location": "/r/1"}, b"")
    hops = {f"/r/{n}": (302, {"Location": f"/r/{n + 1}"}, b"") for n in range(1, 9)}
    long = b"user-agent: *\ndisallow: /early\n" + b"# filler\n" * 600_000 + b"disallow: /\n"
    answers = {
        "unavailable": ({"/robots.txt": (404, {}, b"")}, ""),
        "forbidden": ({"/robots.txt": (403, {}, rules)}, ""),
        "error": ({"/robots.txt": (503, {}, b"")}, "robots.unreachable"),
        "moved": (hops | {"/robots.txt": to_first, "/r/5": (200, {}, rules)}, "robots"),
        "moved on and on": (hops | {"/robots.txt": to_first}, ""),
        "silent": ({"/robots.txt": slow}, "robots.unreachable"),
        "long": ({"/robots.txt": (200, {}, long), "/": (200, {}, page("/early"))}, ""),
        "slow down": ({"/robots.txt": (200, {}, b"user-agent: *\ncrawl-delay: 0.4\n"), "/": (200, {}, page("/b"))}, ""),
    }
    answers["many pages"] = ({"/robots.txt": (404, {}, b""), "/": (200, {}, page(*(f"/{n}x" for n in range(9))))}, "")
    sites = {name: serve({"*": (200, {}, page())} | paths) for name, (paths, _) in answers.items()}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/"
    seeds = [nobody, *(site.url + "/" for site in sites.values())]
    counts, rows = run(tmp_path / "crawl", *seeds, pages_per_host=4, links_per_page=7)
    assert {name: rows[site.url + "/"]["reason"] for name, site in sites.items()} == {
        name: reason for name, (_, reason) in answers.items()
    }
    assert rows[nobody]["reason"] == "robots.unreachable"
    assert rows[sites["long"].url + "/early"]["reason"] == "robots", "what stands before the limit counts"
    times = [at for _, _, at in sites["slow down"].asked]
    assert len(times) == 4 and min(b - a for a, b in pairwise(times)) >= 0.39, "the delay that was asked for"
    assert counts["pages-per-host"] == 4 and rows[sites["many pages"].url + "/"]["links_left"] == 2
    files = list(own.files(tmp_path / "crawl"))
    known = ingest.read_robots(files)
    assert not ingest.allowed(sites["moved"].url + "/x", known, "openafm"), "rules stand where extract looks for them"


def test_private_addresses_are_refused_unless_allowed(serve, tmp_path):
    site = serve({"/": (200, {}, page())})
    port = site.server_port
    seeds = [
        f"http://127.0.0.1:{port}/",
        f"http://localhost:{port}/",
        f"http://2130706433:{port}/",
        f"http://[::1]:{port}/",
    ]
    seeds += [f"http://[::ffff:127.0.0.1]:{port}/", "http://169.254.169.254/latest"]
    _, rows = run(tmp_path / "crawl", *seeds, private=False)
    assert {row["reason"] for row in rows.values()} == {"robots.unreachable"} and len(rows) == 6
    assert site.asked == []


def test_a_killed_crawl_goes_on_and_takes_every_page_once(serve, tmp_path):
    links = [f"/p{letter}{n}" for letter in "abcdef" for n in range(10)]
    site = serve({"/robots.txt": (404, {}, b""), "/": (200, {}, page(*links)), "*": (200, {}, page("/", "/pa1"))})
    out = tmp_path / "crawl"
    options = {"delay_seconds": 0.03}
    with subprocess.Popen(
        command(out, site.url + "/", **options), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as first:
        while len(site.asked) < 20:
            time.sleep(0.02)
        os.kill(first.pid, signal.SIGKILL)
    with (out / "pages.jsonl").open("ab") as file:
        file.write(b'{"url": "half a li')
    with next((out / "warc").glob("*.gz")).open("ab") as file:
        file.write(b"\x1f\x8b\x08half a record")
    before = len(site.asked)
    counts, rows = run(out, site.url + "/", **options)
    assert counts == {"taken": 61} and len(rows) == 61 and before >= 20
    found = [page.url for path in own.files(out) for page in pages(path) if not is_robots(page.url)]
    assert sorted(found) == sorted(rows) and all(row["taken"] for row in rows.values())
    assert len(site.asked) - before < 55, "what was taken before the kill is not asked for again"


def test_the_time_is_limited_and_what_waits_is_told(serve, tmp_path):
    site = serve(
        {"/robots.txt": (404, {}, b""), "/": (200, {}, page(*(f"/p{n}x" for n in range(50)))), "*": (200, {}, page())}
    )
    counts, _ = run(tmp_path / "crawl", site.url + "/", delay_seconds=0.3, seconds=2)
    assert counts["waiting"] > 0


def test_addresses_by_their_form():
    assert key_of("http://h.example/a;jsessionid=1?b=2&a=1&utm_source=x") == key_of("http://H.example/a?a=1&b=2")
    assert key_of("http://h.example") == key_of("http://h.example/")
    assert shape_of("http://h.example/2031/05?day=3") == shape_of("http://h.example/1/2?day=44")
    limits, hosts = Limits(), ["h.example", "*.wide.example"]
    assert refusal("http://h.example/a", 1, hosts, limits) == ("", "")
    assert refusal("http://www.h.example/v1.2/a", 1, hosts, limits) == ("", "")
    assert refusal("http://a.wide.example/", 1, hosts, limits) == ("", "")
    reasons = {
        "http://nowide.example/": "host", "http://h.example.evil.example/": "host", "http://x.h.example/": "host",
        "http://h.example/a/b/a/b/a/b/a/b": "trap.path", "http://h.example/" + "a/b1/" * 9: "trap.path",
        "http://h.example/x.PDF": "suffix", "http://h.example/" + "x" * 2_000: "trap.length",
    }  # fmt: skip
    assert {url: refusal(url, 1, hosts, limits)[0] for url in reasons} == reasons


def test_seeds_and_folders_that_are_none(tmp_path):
    (tmp_path / "seeds.txt").write_text("# mine\nhttps://a.example/#part\n\nhttps://b.example/ # why\n")
    assert list(seeds_of([str(tmp_path / "seeds.txt")])) == ["https://a.example/#part", "https://b.example/"]
    (tmp_path / "bad.txt").write_text("https://a.example/\nexample.org\n")
    with pytest.raises(ValueError, match=r"bad.txt:2: 'example.org'"):
        list(seeds_of([str(tmp_path / "bad.txt")]))
    with pytest.raises(ValueError, match="holds something else"):
        crawl(CrawlConfig(seeds=("https://a.example/",)), tmp_path, lambda *told: None)
    with pytest.raises(ValueError, match="line breaks"):
        crawl(CrawlConfig(seeds=("https://a.example/",), contact="a\r\nX: y"), tmp_path, lambda *told: None)


def test_without_scrapy_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scrapy", None)
    with pytest.raises(ImportError, match=r"pip install 'openafm\[crawl\]'"):
        crawl(CrawlConfig(seeds=("https://a.example/",)), tmp_path / "x", lambda *told: None)


def test_the_frontier_forgets_what_was_not_committed(tmp_path):
    (tmp_path / "warc").mkdir()
    frontier = Frontier(tmp_path, ["h.example"], Limits())
    assert frontier.add("https://h.example/a", 0) and not frontier.add("https://h.example/a?utm_medium=x", 3)
    frontier.commit()
    waiting = frontier.next("https://h.example")
    frontier.decide(waiting, "", "")
    frontier.pages.flush()
    frontier.database.rollback()
    again = Frontier(tmp_path, ["h.example"], Limits())
    assert again.waiting() == 1 and (tmp_path / "pages.jsonl").read_bytes() == b""
