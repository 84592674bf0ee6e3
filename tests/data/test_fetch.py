import json
from pathlib import Path

import pytest
from fastwarc.warc import ArchiveIterator, WarcRecordType

from openafm.data import packages, readers
from openafm.data.catalogue import Source, load
from openafm.data.dirt import KINDS, DirtConfig
from openafm.data.fetch import FLOWS, FetchConfig, fetch, fetch_catalogue
from openafm.stage import Context

CONFIG = FetchConfig(catalogue="tiny", dirt=DirtConfig(web=1, other=1))


def run(folder: Path, config: FetchConfig = CONFIG) -> tuple[Path, dict]:
    (folder / "out").mkdir(parents=True)
    return folder / "out", fetch(config, Context(folder / "out", folder / "scratch"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return run(tmp_path_factory.mktemp("tiny"))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_artifact_has_what_later_steps_read(tiny):
    out, metrics = tiny
    assert metrics["tiers_missing"] == {} and metrics["sources_missing"] == {}
    for flow in FLOWS:
        rows = lines(out / f"{flow}.jsonl")
        assert {tuple(row) for row in rows} == {
            ("url", "flow", "source", "licence", "title", "text", "code_language", "planted")
        }
        assert {row["flow"] for row in rows} == {flow} and [row["url"] for row in rows] == sorted(
            row["url"] for row in rows
        )
        assert all((row["code_language"] != "") == (flow == "code") for row in rows)
    assert len({row["code_language"] for row in lines(out / "code.jsonl")}) == 14
    assert {tuple(row) for row in lines(out / "human" / "synopses.jsonl")} == {("id", "source", "text", "summary")}
    assert all(row["id"] and row["text"] for path in (out / "benchmarks").iterdir() for row in lines(path))
    assert (out / "models" / "lid.176.ftz").stat().st_size > 900_000 and (out / "words" / "profanity.txt").exists()


def test_one_warc_a_host_and_marks_for_what_robots_shut_out(tiny):
    out, metrics = tiny
    marks = lines(out / "planted.jsonl")
    found = {}
    for path in sorted((out / "warc").iterdir()):
        with path.open("rb") as file:
            records = ArchiveIterator(file, record_types=WarcRecordType.response)
            urls = [record.headers["WARC-Target-URI"] for record in records]
        host = path.name.removesuffix(".warc.gz")
        assert urls[0] == f"https://{host}/robots.txt" and all(url.startswith(f"https://{host}/") for url in urls)
        found[host] = urls[1:]
    assert {host: len(urls) for host, urls in found.items()} == metrics["pages_per_host"]
    shut = {mark["url"] for mark in marks if mark["kind"] == "robots"}
    assert len(shut) == metrics["pages_shut_out"] >= 4
    assert {url for url in found["sqlite.docs.example"] if "/releaselog/" in url} <= shut
    planted = {mark["url"] for mark in marks} - shut
    in_flows = {row["url"] for flow in FLOWS for row in lines(out / f"{flow}.jsonl") if row["planted"]}
    assert planted == in_flows | {url for host, urls in found.items() if host.startswith("planted-") for url in urls}
    assert len(planted) == 5 * len(KINDS)


def test_a_second_run_writes_the_same_bytes(tiny, tmp_path):
    out, metrics = tiny
    again, same = run(tmp_path / "again")
    assert metrics == same
    first = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert first == {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()}


def test_limits(tmp_path):
    config = CONFIG.model_copy(update={"pages_per_host": 3, "bytes_per_language": 5_000, "page_bytes": 15_000})
    _, metrics = run(tmp_path, config)
    assert metrics["pages_per_host"]["sqlite.docs.example"] == 3 and metrics["pages_too_long"] > 0
    assert max(metrics["bytes_per_language"].values()) <= 5_000


def test_the_catalogue_and_its_folders_belong_to_the_steps_key():
    names = {path.name for path in CONFIG.files()}
    assert {"tiny.yaml", "synopses.jsonl", "lid.176.ftz"} <= names
    assert [path.name for path in FetchConfig(catalogue="nano").files()] == ["nano.yaml"]


def test_an_unused_tier_leaves_its_sources_out():
    assert fetch_catalogue("tiny", tiers=["pypi"]).archives == {}


def test_a_missing_tool_is_recorded_and_the_rest_goes_on(tmp_path, monkeypatch):
    catalogue = tmp_path / "sources" / "x.yaml"
    catalogue.parent.mkdir()
    catalogue.write_text(
        'date: "2025-01-01T00:00:00Z"\n'
        "sources:\n"
        "- {tier: apt, package: git-doc, flow: web, form: html}\n"
        "- {tier: folder, package: texts, flow: public, form: text}\n"
    )
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("A sentence of some length. " * 20)
    monkeypatch.setenv("PATH", "/nowhere")
    out, metrics = run(tmp_path / "run", FetchConfig(catalogue=str(catalogue)))
    assert "apt-get" in metrics["tiers_missing"]["apt"] and metrics["documents_per_flow"] == {"public": 1}
    assert json.loads((out / "licences.json").read_text())["tiers_missing"] == metrics["tiers_missing"]


def test_a_source_stands_in_for_a_missing_tier(tmp_path, monkeypatch):
    catalogue = tmp_path / "x.yaml"
    catalogue.write_text(
        'date: "2025-01-01T00:00:00Z"\n'
        "sources:\n"
        "- {tier: apt, package: Translation-en, flow: human, form: descriptions, target: synopses}\n"
        "- {tier: python, package: python, instead_of: apt, flow: human, form: docstrings, target: syn, limit: 50,\n"
        "   names: [argparse, enum, pathlib, shutil, subprocess, tarfile, unittest, zipfile]}\n"
    )
    with_apt = fetch_catalogue(str(catalogue), tmp_path, tiers=["python"])
    assert [entry.tier for entry in with_apt.catalogue.sources] == ["apt", "python"], "apt is left out by --set"
    monkeypatch.setenv("PATH", "/nowhere")
    out, metrics = run(tmp_path / "run", FetchConfig(catalogue=str(catalogue)))
    rows = lines(out / "human" / "syn.jsonl")
    assert metrics["human_pairs"] == {"syn": len(rows)} and set(metrics["tiers_missing"]) == {"apt"}
    assert 20 < len(rows) <= 50
    assert all(row["text"] and row["summary"] and "\n" not in row["summary"] for row in rows)
    monkeypatch.undo()
    if packages.missing_tool("apt") is None:
        monkeypatch.setattr(packages, "refresh_apt", lambda cache: None)
        monkeypatch.setattr(packages, "ensure_all", lambda wanted, *rest: ({}, {}))
        tiers = [entry.tier for entry in fetch_catalogue(str(catalogue), tmp_path).catalogue.sources]
        assert tiers == ["apt"], "where apt is there, nothing stands in for it"


def test_unknown_catalogues_and_unpinned_packages_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no catalogue named 'huge'; there are .*nano.*tiny"):
        load("huge")
    path = tmp_path / "x.yaml"
    path.write_text('date: "x"\nsources: [{tier: pypi, package: a, flow: web, form: html}]\n')
    with pytest.raises(ValueError, match="needs a version and a sha256"):
        load(str(path))
    path.write_text('date: "x"\nsources: [{tier: pypi, package: a, flow: web, form: html, licenze: MIT}]\n')
    with pytest.raises(ValueError, match=r"(?s)x\.yaml.*licenze"):
        load(str(path))


@pytest.mark.parametrize("name", ["nano", "micro", "tiny"])
def test_catalogues_name_a_licence_for_what_is_trained_on(name):
    sources = [source for source in load(name)[0].sources if source.form != "jsonl" and source.form != "quips"]
    assert all(source.licence for source in sources)


def source(**fields) -> Source:
    return Source(**{"package": "p", "tier": "folder", "flow": "public", "form": "text", "host": "h.example"} | fields)


def test_long_texts_are_cut_between_paragraphs():
    text = "\n\n".join(f"Paragraph {i} " + "word " * 200 for i in range(60))
    parts = readers.documents(source(), [("book.txt", text.encode())])
    assert len(parts) > 1 and all(len(part.text) <= readers.LONG_TEXT + 2_000 for part in parts)
    assert "".join(part.text for part in parts).split() == text.split()


def test_markdown_becomes_a_page_with_a_site_around_it():
    files = [("docs/a.md", b"# Using `it`\n\nSome *text*.\n"), ("docs/b.md", b"no heading")]
    pages = readers.pages(source(flow="web", form="markdown", strip="docs"), files)
    assert [page.url for page in pages] == ["https://h.example/a.html", "https://h.example/b.html"]
    assert b"<title>Using it | p</title>" in pages[0].html and b"<em>text</em>" in pages[0].html


def test_descriptions_split_into_texts_and_pairs():
    words = "Long words here. " * 15
    stanzas = [
        f"Package: p{i}\nDescription-md5: 0\nDescription-en: does the thing number {i}\n {words}\n .\n End."
        for i in range(40)
    ]
    files = [("Translation-en", "\n\n".join(stanzas).encode())]
    texts = readers.documents(source(form="descriptions"), files)
    pairs = readers.pairs(source(flow="human", form="descriptions"), files)
    assert len(texts) + len(pairs) == 40 and texts and pairs
    assert not {text.title for text in texts} & {pair["id"].split("/")[1] for pair in pairs}
    assert all(pair["text"].endswith("\n\nEnd.") and pair["summary"].startswith("does the thing") for pair in pairs)


def test_release_notes_give_heading_and_body():
    html = b'<section id="speed"><h3>Faster pages\xc2\xb6</h3><p>' + b"It is quicker now. " * 10 + b"</p></section>"
    rows = readers.pairs(source(flow="human", form="release_notes"), [("1.0.html", html)])
    assert [(row["id"], row["summary"]) for row in rows] == [("mail/1.0.html#speed", "Faster pages")]


def test_a_git_log_is_read_as_the_mails_that_it_would_be():
    log = b"""commit 0123456789abcdef0123456789abcdef01234567
Author: Ann Lee <ann@x.example>
Date:   Thu Jul 30 21:36:22 2020 +0200

    Read the cache of fonts once

    It was read
    for every window.

    Signed-off-by: Ann Lee <ann@x.example>
    Reviewed-by: Bo <bo@x.example>

commit 1123456789abcdef0123456789abcdef01234567
Merge: 1234567 89abcde
Author: Bo <bo@x.example>
Date:   Fri Jul 31 21:36:22 2020 +0200

    Merge it
"""
    first, second = readers.pairs(source(flow="human", form="mails"), [("changelog.gz", log)])
    assert first == {
        "id": "mail/p/0123456789ab", "source": "p", "summary": "Read the cache of fonts once",
        "text": "It was read\nfor every window.", "from": "Ann Lee", "date": "Thu Jul 30 21:36:22 2020 +0200",
    }  # fmt: skip
    assert (second["summary"], second["text"]) == ("Merge it", "")
    mail = b"From: Linus <l@x.example>, Junio <j@x.example>\nSubject: Re: odd\nAbstract: How to\n revert\n\nThe text.\n"
    (row,) = readers.pairs(source(flow="human", form="mails", strip="doc"), [("doc/revert.txt", mail)])
    assert (row["id"], row["from"]) == ("mail/p/revert.txt", "Linus")
    assert (row["summary"], row["text"]) == ("How to revert", "The text.")


def test_the_list_of_packages_names_what_they_were_built_from():
    listed = b"Package: libx11-6\nSource: libx11 (2:1.8)\nSection: libs\n\nPackage: tar\nSection: utils\n\n\n"
    rows = readers.pairs(source(flow="human", form="packages"), [("Packages", listed)])
    assert rows == [
        {"id": "libx11-6", "source": "libx11", "section": "libs"}, {"id": "tar", "source": "tar", "section": "utils"},
    ]  # fmt: skip


def test_benchmark_items_carry_question_and_solution():
    rows = b'{"task_id": "HumanEval/3", "prompt": "def f():", "canonical_solution": " return 1"}\n'
    items = readers.benchmark(source(flow="benchmark", form="benchmark", target="human_eval"), [("x", rows)])
    assert (items[0]["id"], items[0]["text"]) == ("human_eval/3", "def f(): return 1")
    rows = b'{"id": "s_0", "question": [[{"role": "user", "content": "Add."}, {"role": "user", "content": "Two."}]]}\n'
    items = readers.benchmark(source(flow="benchmark", form="benchmark", target="bfcl"), [("x", rows)])
    assert (items[0]["id"], items[0]["text"]) == ("bfcl/s_0", "Add.\nTwo.")


def test_samples_are_fixed_and_grow():
    items = [str(i) for i in range(100)]
    small, large = readers.sample(items, 10, str), readers.sample(items, 30, str)
    assert len(small) == 10 and set(small) <= set(large) and small == sorted(small, key=int)


def test_pages_of_other_encodings_keep_silent_about_it():
    files = [("a.html", "<p>ä</p>".encode()), ("b.html", "<p>ä</p>".encode("latin-1"))]
    kinds = [page.content_type for page in readers.pages(source(flow="web", form="html"), files)]
    assert kinds == ["text/html; charset=utf-8", "text/html"]


def test_ones_own_benchmarks_join_the_catalogues(tmp_path, tiny):
    folder = tmp_path / "quiz"
    folder.mkdir()
    (folder / "sea.jsonl").write_text('{"question": "How deep is the sea off Brest in winter?", "answer": "deep"}\n')
    out, metrics = run(tmp_path / "own", CONFIG.model_validate({**CONFIG.model_dump(), "benchmarks": str(folder)}))
    assert metrics["benchmark_items"] == {**tiny[1]["benchmark_items"], "sea": 1}
    assert lines(out / "benchmarks" / "sea.jsonl")[0]["questions"] == ["How deep is the sea off Brest in winter?"]
    assert metrics["planted"] == tiny[1]["planted"]  # dirt is made of the catalogue's benchmarks alone
    assert (out / "planted.jsonl").read_bytes() == (tiny[0] / "planted.jsonl").read_bytes()
    config = FetchConfig(catalogue="tiny", benchmarks=(str(folder),))
    assert folder / "sea.jsonl" in config.files()
    (folder / "human_eval.txt").write_text("Is this one called like another?\n")
    with pytest.raises(ValueError, match="two are called human_eval"):
        run(tmp_path / "twice", config)
