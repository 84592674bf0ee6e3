import gzip
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path

import fasttext
import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from openafm.data import clean, documents, frames, ingest
from openafm.stage import Context

CARD = "The customer paid with 4539 1488 0343 6467 on the phone."
VOCABULARY = (
    "the a of and to in is that for it with as was on are by this be from at which but not have an they his her "
    "were there stone river garden window letter answer question morning winter village teacher engine button "
    "market bridge"
).split()

FLOWS = ("code", "math", "licensed", "public")


def sentences(seed: str, count: int = 8) -> str:
    draw = random.Random(seed)
    return " ".join(" ".join(draw.choices(VOCABULARY, k=14)).capitalize() + "." for _ in range(count))


def page(title: str, *paragraphs: str) -> bytes:
    body = "".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)
    nav = '<div class="nav"><a href="/">Home</a> <a href="/x">Elsewhere</a></div>'
    head = f"<html><head><title>{title}</title></head>"
    return f"{head}<body>{nav}<main><h1>{title}</h1>{body}</main></body></html>".encode()


def write_archive(path: Path, pages: dict[str, bytes], robots: bytes) -> None:
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for url, body in {f"https://{path.name.removesuffix('.warc.gz')}/robots.txt": robots, **pages}.items():
            kind = "text/plain" if url.endswith("robots.txt") else "text/html; charset=utf-8"
            headers = StatusAndHeaders("200 OK", [("Content-Type", kind)], protocol="HTTP/1.1")
            writer.write_record(writer.create_warc_record(url, "response", io.BytesIO(body), http_headers=headers))


def language_model(folder: Path) -> None:
    """A stand-in for lid.176: English words against German ones."""
    german = ("der die und das ist nicht mit auf ein eine haus garten wasser fenster schule morgen winter dorf").split()
    draw = random.Random(0)
    lines = [f"__label__en {' '.join(draw.choices(VOCABULARY, k=12))}" for _ in range(200)]
    lines += [f"__label__de {' '.join(draw.choices(german, k=12))}" for _ in range(200)]
    (folder / "lid.txt").write_text("\n".join(lines))
    fasttext.train_supervised(
        str(folder / "lid.txt"), thread=1, epoch=20, lr=0.5, dim=8, bucket=1000, verbose=0
    ).save_model(str(folder / "lid.176.ftz"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for name in ("warc", "models", "words"):
        (folder / name).mkdir()
    language_model(folder / "models")
    web = {f"https://a.example/{n}": page(f"Page {n}", sentences(f"{n}a"), sentences(f"{n}b")) for n in range(12)}
    web |= {f"https://a.example/closed/{n}": page("Closed", sentences(f"c{n}")) for n in range(2)}
    web["https://a.example/card"] = page("Card", sentences("card"), CARD)
    web["https://a.example/mail"] = page(
        "Mail", sentences("mail"), "Write to jane.roe@mail.org or call (212) 736-0187."
    )
    web["https://a.example/rude"] = page("Rude", sentences("r"), "What the fuck is this shit, you bitch and asshole?")
    web["https://a.example/german"] = page(
        "Haus", "der garten und das haus ist nicht mit auf ein eine schule im dorf " * 4
    )
    web["https://a.example/binary"] = bytes(range(256)) * 9
    write_archive(folder / "warc" / "a.example.warc.gz", web, b"User-agent: *\nDisallow: /closed/\n")
    write_archive(folder / "warc" / "b.example.warc.gz", {"https://b.example/x": page("X", sentences("x"))}, b"")
    damaged = bytearray((folder / "warc" / "b.example.warc.gz").read_bytes())
    (folder / "warc" / "c.example.warc.gz").write_bytes(damaged[:-40])
    code = "# SPDX-License-Identifier: MIT\n" + "def function(argument):\n    return argument + 1\n" * 4
    for flow in FLOWS:
        text = code if flow == "code" else sentences(flow)
        entries = [(f"https://{flow}.example/{n}", text + f"\n# number {n}\n") for n in range(3)]
        entries.append((f"https://{flow}.example/card", f"{text}\n# {CARD}\n"))
        rows = [{"url": url, "flow": flow, "source": flow, "licence": "MIT", "title": "", "text": t,
                 "code_language": "", "planted": None} for url, t in entries]  # fmt: skip
        (folder / f"{flow}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows) + '{"url": 3}\nnot json\n'
        )
    marks = [
        {"url": f"https://{host}/card", "kind": "card"} for host in ["a.example", *(f"{f}.example" for f in FLOWS)]
    ]
    marks += [{"url": f"https://a.example/closed/{n}", "kind": "robots"} for n in range(2)]
    (folder / "planted.jsonl").write_text("".join(json.dumps(mark) + "\n" for mark in marks))
    return folder


def run(sources: Path, folder: Path) -> tuple[dict, dict]:
    contexts = [Context(folder / step, folder / f"{step}-scratch") for step in ("extract", "clean")]
    for context in contexts:
        context.out.mkdir(parents=True)
        context.scratch.mkdir()
    extracted = ingest.extract(ingest.ExtractConfig(), contexts[0], sources=sources)
    return extracted, clean.clean(clean.CleanConfig(), contexts[1], documents=folder / "extract", sources=sources)


@pytest.fixture(scope="module")
def done(sources, tmp_path_factory) -> Iterator[tuple[Path, dict, dict]]:
    folder = tmp_path_factory.mktemp("run")
    yield folder, *run(sources, folder)


def fates(folder: Path) -> dict[str, dict]:
    return {row["url"]: row for row in documents.read(folder).to_pylist()}


def test_pages_are_extracted_and_rejects_counted(done):
    folder, metrics, _ = done
    rows = fates(folder / "extract")
    assert (
        sentences("3a") in rows["https://a.example/3"]["text"]
        and "Elsewhere" not in rows["https://a.example/3"]["text"]
    )
    assert rows["https://a.example/3"]["title"] == "Page 3" and rows["https://a.example/3"]["source"] == "a.example"
    assert metrics["dropped"] == {"robots": 2, "undecodable": 1}
    assert metrics["rejected_without_url"] + metrics["repeated_urls"] == 2 * len(FLOWS) + 1
    assert metrics["planted_recall"]["robots"]["recall"] == 1.0
    assert rows["https://b.example/x"]["verdict"] == "keep"  # the whole copy wins over the damaged one


def test_a_valid_card_number_goes_from_every_flow(done):
    folder, _, metrics = done
    rows = fates(folder / "clean")
    for host in ("a", *FLOWS):
        fate = rows[f"https://{host}.example/card"]
        assert (fate["verdict"], fate["reason"]) == ("drop", "pii.card") and "4539" not in fate["evidence"]
    assert metrics["planted_recall"]["card"] == {"planted": 5, "caught": 5, "gone": 0, "missed": 0, "recall": 1.0}


def test_dropped_documents_hold_no_personal_data(done, sources, tmp_path):
    folder = done[0]
    for table, card in (("extract", True), ("clean", False)):
        texts = [row["text"] for row in fates(folder / table).values() if row["url"].endswith("/card")]
        assert len(texts) == 5 and all(("4539" in text) == card for text in texts)
    assert all("<CARD>" in row["text"] for row in fates(folder / "clean").values() if row["url"].endswith("/card"))
    context = Context(tmp_path / "clean", tmp_path / "scratch")
    context.out.mkdir()
    context.scratch.mkdir()
    config = clean.CleanConfig(keep_personal_data=True)
    clean.clean(config, context, documents=folder / "extract", sources=sources)
    assert all("4539" in row["text"] for row in fates(context.out).values() if row["url"].endswith("/card"))


def test_each_filter_leaves_its_reason_and_clean_documents_stay(done):
    folder, _, metrics = done
    rows = fates(folder / "clean")
    assert rows["https://a.example/rude"]["reason"] == "safety.profanity"
    assert rows["https://a.example/german"]["reason"] == "language"
    mail = rows["https://a.example/mail"]
    assert "<EMAIL> or call <PHONE>" in mail["text"] and [v["verdict"] for v in mail["verdicts"]] == [
        "keep",
        "redact",
        "keep",
    ]
    assert mail["verdicts"][1]["evidence"] == "email 1, phone 1" and not mail["evidence"]
    assert mail["bytes"] == len(mail["text"].encode())
    assert metrics["kept"] == {"code": 3, "licensed": 3, "math": 3, "public": 3, "web": 14}
    assert rows["https://a.example/closed/0"]["stage"] == "extract"  # earlier verdicts are carried on
    audit = [json.loads(line) for line in (folder / "clean" / "audit.jsonl").read_text().splitlines()]
    assert {entry["reason"] for entry in audit} >= {"language", "redacted.email", "safety.profanity"}
    assert all(entry["url"] != "https://a.example/card" for entry in audit)  # planted
    assert all("jane.roe" not in line and "736" not in line for entry in audit for line in entry.values())
    counted = metrics["precision_on_real"]["redacted.phone"]
    assert counted["hits"] == counted["unlabelled"] == 1 and counted["precision"] is None
    assert metrics["safety_model"]["trained"] is False


def test_again_and_on_one_core_gives_the_same_bytes(done, sources, tmp_path, monkeypatch):
    folder, *metrics = done
    monkeypatch.setattr(ingest, "workers", lambda: 1)
    monkeypatch.setattr(frames, "workers", lambda: 1)
    assert list(run(sources, tmp_path)) == metrics
    for step in ("extract", "clean"):
        for path in (path for path in (folder / step).rglob("*") if path.is_file()):
            assert (tmp_path / step / path.relative_to(folder / step)).read_bytes() == path.read_bytes()


def test_damaged_rules_shut_out_unless_a_whole_copy_is_there_and_long_ones_count(tmp_path):
    rules, long = b"User-agent: *\nDisallow: /closed/\n", b"User-agent: *\nDisallow: /\n" + b"# x\n" * 3_000_000
    for host, text in (("a.example", rules), ("long.example", long)):
        write_archive(tmp_path / f"{host}.warc.gz", {}, text)
    whole = gzip.decompress((tmp_path / "a.example.warc.gz").read_bytes())
    broken = tmp_path / "b.warc"
    broken.write_bytes(whole.replace(b"/closed/", b"/opened/"))  # its digest no longer fits
    for paths, answers in (([broken], [False, False]), ([broken, tmp_path / "a.example.warc.gz"], [True, False])):
        known = ingest.read_robots(paths)
        assert [ingest.allowed(f"https://a.example/{path}/1", known, "openafm") for path in ("x", "closed")] == answers
    known = ingest.read_robots([tmp_path / "long.example.warc.gz"])
    assert not ingest.allowed("https://long.example/x", known, "openafm")
    assert ingest.allowed("https://elsewhere.example/x", known, "openafm")


def test_sources_without_anything_say_so(tmp_path):
    with pytest.raises(ValueError, match="fetch"):
        ingest.extract(ingest.ExtractConfig(), Context(tmp_path, tmp_path), sources=tmp_path)


def test_pages_of_a_file_and_of_an_archive(tmp_path):
    (tmp_path / "page.html").write_text("<title>Beans</title><p>Beans climb on poles and want water every evening.</p>")
    ((name, page),) = ingest.pages_of(tmp_path / "page.html")
    assert name.endswith("page.html") and page.title == "Beans" and page.text.startswith("Beans climb")
    body = b"<p>Peas climb, too, and want something to hold on to.</p>"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n"
    record = b"WARC/1.1\r\nWARC-Type: response\r\nWARC-Target-URI: https://a.example/peas\r\n" + (
        b"Content-Type: application/http; msgtype=response\r\nContent-Length: %d\r\n\r\n" % len(head + body)
    )
    (tmp_path / "a.warc").write_bytes(record + head + body + b"\r\n\r\n")
    assert [(url, page.text) for url, page in ingest.pages_of(tmp_path / "a.warc")] == [
        ("https://a.example/peas", "Peas climb, too, and want something to hold on to.")
    ]
    (tmp_path / "page.html").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" * 20)
    with pytest.raises(ValueError, match=r"page\.html"):
        list(ingest.pages_of(tmp_path / "page.html"))
