import protego
from fastwarc.warc import ArchiveIterator, WarcRecordType
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.data.crawl_archive import choose_rules, robots_txt, write_host
from openafm.data.readers import Page

DATE = "2025-01-01T00:00:00Z"
PAGES = [
    Page(f"https://a.example/{name}.html", f"<p>{name}</p>".encode(), "text/html; charset=utf-8", "a", "MIT")
    for name in ("b/one", "b/two", "three")
]


def test_robots_first_then_pages_with_headers(tmp_path):
    path = tmp_path / "a.example.warc.gz"
    write_host(path, "a.example", PAGES, ["/b/"], DATE)
    with path.open("rb") as file:
        records = [
            (
                record.headers["WARC-Target-URI"],
                record.http_headers.status_code,
                record.http_content_type,
                record.reader.read(),
            )
            for record in ArchiveIterator(file, record_types=WarcRecordType.response)
        ]
    assert records[0][0] == "https://a.example/robots.txt" and b"Disallow: /b/" in records[0][3]
    assert [(url, body) for url, _, _, body in records[1:]] == [(page.url, page.html) for page in PAGES]
    assert {(status, kind) for _, status, kind, _ in records[1:]} == {(200, "text/html")}


def test_bytes_do_not_depend_on_the_moment(tmp_path):
    for name in "xy":
        write_host(tmp_path / name, "a.example", PAGES, ["/b/"], DATE)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_rules_as_an_independent_parser_reads_them():
    robots = protego.Protego.parse(robots_txt(["/b/"]).decode())
    assert not robots.can_fetch("https://a.example/b/one.html", "Anything")
    assert robots.can_fetch("https://a.example/three.html", "Anything")
    assert not robots.can_fetch("https://a.example/three.html", "GreedyBot")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text("abc/", min_size=1, max_size=8), min_size=5, max_size=40, unique=True))
def test_chosen_rules_shut_out_some_pages_but_not_most(paths):
    urls = [f"https://a.example/{path}" for path in paths]
    robots = protego.Protego.parse(robots_txt(choose_rules(urls)).decode())
    shut = sum(not robots.can_fetch(url, "*") for url in urls)
    assert 0 < shut < len(urls)
