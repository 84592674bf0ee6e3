"""A user's own files of every form, whole and damaged, through `fetch` and `extract`."""

import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from openafm.data import documents, ingest, own
from openafm.data.catalogue import Source, load
from openafm.data.dirt import DirtConfig
from openafm.data.fetch import FetchConfig, fetch
from openafm.stage import Context

PROSE = "Beans climb on poles, and they are watered in the evening. "
HTML = f"<html><body><main><h1>Garden</h1><p>{PROSE * 5}</p></main></body></html>"
SITE = "https://texts.example"


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


def jsonl(*rows: object) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def parquet(path, **columns) -> None:
    pq.write_table(pa.table(columns), path)


def wet() -> bytes:
    file = io.BytesIO()
    writer = WARCWriter(file, gzip=True)
    body = io.BytesIO(f"Wet page\n{PROSE * 3}".encode())
    writer.write_record(
        writer.create_warc_record("https://wet.example/1", "conversion", body, warc_content_type="text/plain")
    )
    return file.getvalue()


def warc() -> bytes:
    file = io.BytesIO()
    writer = WARCWriter(file, gzip=True)
    pages = {"robots.txt": (b"user-agent: *\ndisallow: /shut\n", "text/plain"), "shut/1": (HTML.encode(), "text/html")}
    pages |= {"open": (HTML.encode(), "text/html"), "plain": (PROSE.encode() * 3, "text/plain; charset=utf-8")}
    for name, (body, kind) in pages.items():
        http = StatusAndHeaders("200 OK", [("Content-Type", kind)], protocol="HTTP/1.1")
        url = f"https://crawl.example/{name}"
        writer.write_record(writer.create_warc_record(url, "response", io.BytesIO(body), http_headers=http))
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Every form once, and damaged neighbours; more would only repeat."""
    root = tmp_path / "mine"
    (root / "deep").mkdir(parents=True)
    whole = {
        "garden.txt": PROSE.encode() * 3, "two words.TXT": b"Both.",
        "deep/tools.md": b"# Tools\r\n\r\nA spade & a rake.",
        "latin.txt": "Ein Garten mit Bäumen und schönen Blumen für alle Bäume.".encode("latin-1"),
        "page.html": HTML.encode(), "deep/latin.htm": HTML.replace("Garden", "Gärten").encode("latin-1"),
        "code.py": b"def f():\n    return 1\n", "deep/code.rs.gz": gzip.compress(b"fn main() {}\n"),
        "crawl.warc.gz": warc(), "cc.warc.wet.gz": wet(), "photo.jpg": b"\xff\xd8", ".hidden/x.txt": b"no",
        "a.jsonl.zst": zstd(jsonl({"text": PROSE, "url": "https://rows.example/1", "title": "Row", "license": "MIT"})),
        "b.jsonl.gz": gzip.compress(jsonl({"content": "x = 1", "flow": "code", "code_language": "Python"}))
        + gzip.compress(jsonl({"raw_content": PROSE, "flow": "public"})),
    }  # fmt: skip
    damaged = {
        "bad.txt": bytes(range(256)) * 4, "empty.md": b" \n", "cut.jsonl.gz": gzip.compress(jsonl({"text": "a"}))[:-9],
        "huge.txt.zst": zstd(b"x" * (own.MAX_PAGE_BYTES + 1)), "bad.parquet": b"PAR1 no PAR1", "no.warc.gz": b"no",
        "bad.jsonl": jsonl({"text": "good"}, b"{", [1], {"text": 3}, {"text": "x", "flow": "human"}, b"", b"\xff"),
        "html.jsonl": jsonl({"html": HTML, "url": "https://rows.example/html"}, {"html": HTML, "url": "x\r\ny: z"}),
        "lie.zst": b"no", "lie.txt.zst": b"no", "lie.txt.gz": b"\x1f\x8b\x08no",
    }  # fmt: skip
    for name, data in (whole | damaged).items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)
    parquet(
        root / "rows.parquet", text=[PROSE, None, "third"], url=[None, None, "https://rows.example/p"], id=[1, 2, 3]
    )
    (root / "link.txt").symlink_to(root / "garden.txt")
    return root


def run(folder, tmp_path, catalogue="tiny"):
    contexts = [Context(tmp_path / step, tmp_path / f"{step}-scratch") for step in ("fetch", "extract")]
    for context in contexts:
        context.out.mkdir(parents=True)
        context.scratch.mkdir()
    dirt = DirtConfig(web=0, other=0)
    metrics = fetch(FetchConfig(catalogue=catalogue, texts=str(folder), dirt=dirt), contexts[0])
    found = ingest.extract(ingest.ExtractConfig(), contexts[1], sources=contexts[0].out)
    rows = {row["url"]: row for row in documents.read(contexts[1].out).to_pylist()}
    return metrics, found, rows


def test_every_form_becomes_documents_and_what_is_broken_is_counted(folder, tmp_path):
    metrics, extracted, rows = run(folder, tmp_path)
    flows = {url.removeprefix(SITE): row["flow"] for url, row in rows.items() if url.startswith(SITE)}
    assert flows == {
        "/garden.txt": "web", "/deep/tools.md": "web", "/two%20words.TXT": "web", "/latin.txt": "web",
        "/page.html": "web", "/deep/latin.htm": "web", "/code.py": "code", "/deep/code.rs.gz": "code",
        "/b.jsonl.gz#1": "code", "/b.jsonl.gz#2": "public", "/cut.jsonl.gz#1": "web", "/bad.jsonl#1": "web",
        "/rows.parquet#1": "web",
    }  # fmt: skip
    assert rows[f"{SITE}/deep/tools.md"]["text"] == "# Tools\n\nA spade & a rake."
    assert "schönen" in rows[f"{SITE}/latin.txt"]["text"] and "Gärten" in rows[f"{SITE}/deep/latin.htm"]["text"]
    assert rows[f"{SITE}/deep/code.rs.gz"]["code_language"] == "Rust"
    assert rows["https://rows.example/1"]["licence"] == "MIT" and rows["https://rows.example/1"]["title"] == "Row"
    assert {"https://rows.example/p", "https://rows.example/html"} <= rows.keys()
    assert rows["https://wet.example/1"]["text"].startswith("Wet page\nBeans climb")
    assert rows["https://crawl.example/shut/1"]["reason"] == "robots"
    assert rows["https://crawl.example/plain"]["text"] == PROSE * 3
    assert rows["https://crawl.example/open"]["verdict"] == "keep"
    mine = metrics["own"]
    assert mine["ignored"] == {".jpg": 1, "": 1} and mine["archives"] == 3 and mine["pages"] == 3
    assert mine["rejected"] == {
        "unreadable": 5, "empty": 1, "too-large": 1, "not-json": 2, "not-an-object": 1, "no-text": 2,
        "unknown-flow": 1, "no-url": 1,
    }  # fmt: skip
    rejects = [json.loads(line) for line in (tmp_path / "fetch" / "rejects.jsonl").read_text().splitlines()]
    assert {(r["file"], r["record"]) for r in rejects if r["file"] == "bad.jsonl"} == {
        ("bad.jsonl", n) for n in (2, 3, 4, 5, 7)
    }
    lost = (tmp_path / "extract" / "rejects.jsonl").read_text()
    assert "no.warc.gz" in lost and extracted["rejected_without_url"] == 1


def test_again_gives_the_same_bytes(folder, tmp_path):
    source, root = load("tiny", str(folder))[0].sources[-1], folder
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        own.take([(source, root)], tmp_path / name, "2025-01-01T00:00:00Z", lambda *told: None)
    first = {path.relative_to(tmp_path / "a"): path.read_bytes() for path in (tmp_path / "a").rglob("*.*")}
    assert first == {path.relative_to(tmp_path / "b"): path.read_bytes() for path in (tmp_path / "b").rglob("*.*")}


def test_a_catalogue_of_ones_own(folder, tmp_path):
    catalogue = tmp_path / "mine.yaml"
    entry = {"tier": "folder", "package": str(folder), "form": "any", "flow": "licensed", "host": "h.example"}
    entry |= {"licence": "MIT", "files": ["*.txt"], "exclude": ["bad*"], "strip": "deep"}
    catalogue.write_text(json.dumps({"date": "2025-01-01T00:00:00Z", "sources": [entry]}))
    source = load(str(catalogue))[0].sources[0]
    taken = own.take([(source, folder)], tmp_path, "2025-01-01T00:00:00Z", lambda *told: None)
    assert taken.documents == {"licensed": 2} and taken.files == {".txt": 2}
    assert folder / "garden.txt" in FetchConfig(catalogue=str(catalogue)).files()
    catalogue.write_text(json.dumps({"date": "x", "sources": [entry | {"flow": "human"}]}))
    with pytest.raises(ValueError, match="form any needs"):
        load(str(catalogue))


def test_a_single_file_and_a_crawls_folder(folder, tmp_path):
    assert list(own.files(folder / "crawl.warc.gz")) == [folder / "crawl.warc.gz"]
    (folder / "warc").mkdir()
    (folder / own.CRAWL).write_text("{}")
    (folder / "warc" / "0.warc.gz").write_bytes(b"")
    assert list(own.files(folder)) == [folder / "warc" / "0.warc.gz"]
    with pytest.raises(ValueError, match="nowhere does not exist"):
        load("tiny", str(tmp_path / "nowhere"))


SOURCE = Source(package="p", tier="folder", form="any", flow="web", host="h.example")


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([".txt", ".html", ".py", ".jsonl", ".parquet", ".jsonl.gz", ".txt.zst"]), st.binary(max_size=400)
)
def test_any_bytes_under_any_name_give_items(tmp_path_factory, suffix, data):
    path = tmp_path_factory.mktemp("any") / f"x{suffix}"
    path.write_bytes(data)
    list(own.read_file(path, SOURCE, path.name))
