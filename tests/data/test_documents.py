import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.data import documents
from openafm.data.frames import Drop, write_verdicts


def some(count: int) -> list[documents.Row]:
    return [documents.document(f"https://a.example/{i}", "web", f"text {i}", source="a.example") for i in range(count)]


def contents(folder):
    """{path: bytes} of every file below."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_equal_rows_in_any_order_give_equal_bytes(tmp_path):
    listed = some(50)
    documents.write(listed, tmp_path / "a")
    documents.write(listed[::-1], tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(documents.parts(tmp_path / "a")) == 16
    ids = documents.read(tmp_path / "a")["id"].to_pylist()
    assert ids == sorted(ids) and documents.read(tmp_path / "a").schema == documents.SCHEMA


def test_two_rows_with_one_url_are_refused(tmp_path):
    with pytest.raises(ValueError, match="twice"):
        documents.write(some(2) + some(1), tmp_path)


def test_a_folder_without_documents_says_what_to_give(tmp_path):
    with pytest.raises(ValueError, match="holds no documents"):
        documents.read(tmp_path)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.sampled_from(["", "x", "y"]), st.sampled_from(documents.FLOWS), st.booleans()), max_size=30)
)
def test_the_funnel_accounts_for_every_document(choices):
    listed = []
    for number, (reason, flow, planted) in enumerate(choices):
        row = documents.document(f"u{number}", flow, "é" * number, planted="card" if planted else None)
        listed.append(documents.drop(row, "clean", reason) if reason else row)
    funnel = documents.funnel(pa.Table.from_pylist(listed, documents.SCHEMA))
    assert sum(entry["documents"] for entry in funnel) == len(listed)
    assert sum(entry["bytes"] for entry in funnel) == sum(2 * number for number in range(len(listed)))
    assert sum(entry["planted"] for entry in funnel) == sum(planted for _, _, planted in choices)
    assert all(entry["planted"] + entry["real"] == entry["documents"] for entry in funnel)


def test_lone_surrogates_do_not_reach_the_file(tmp_path):
    documents.write([documents.document("u", "web", "a\ud800b")], tmp_path)
    assert next(documents.rows(tmp_path))["text"] == "a?b"


def test_why_tells_every_verdict_in_order_and_stops_at_the_drop(tmp_path):
    row = documents.judged(documents.document("https://a.example/1", "web", "text", title="A page"), "extract", "keep")
    documents.write([row], tmp_path / "extract")
    row = documents.judged(row, "clean", "redact", "pii", "email 2")
    documents.write([documents.judged(row, "clean", "keep", "", "by the rules")], tmp_path / "clean")
    write_verdicts(tmp_path / "clean", tmp_path / "a", "dedup", {}, notes={row["id"]: "the best of 3 copies"})
    write_verdicts(tmp_path / "a", tmp_path / "b", "quality", {}, {row["id"]: 0.5}, {row["id"]: "rated 0.5"})
    write_verdicts(tmp_path / "b", tmp_path / "c", "decontaminate", {row["id"]: Drop("benchmark.x", "an n-gram")})
    write_verdicts(tmp_path / "c", tmp_path / "d", "later", {})
    documents.parts(tmp_path / "extract")[0].touch()  # the order of files and times says nothing
    assert documents.why("https://a.example/1", tmp_path).splitlines() == [
        "https://a.example/1",
        '  "A page", 4 bytes of text',
        "  extract: kept",
        "  clean: redacted: pii (email 2)",
        "  clean: kept (by the rules)",
        "  dedup: kept (the best of 3 copies)",
        "  quality: kept (rated 0.5)",
        "  decontaminate: dropped: benchmark.x (an n-gram)",
    ]
    last = documents.read(tmp_path / "d").to_pylist()[0]
    assert (last["verdict"], last["stage"], last["evidence"]) == ("drop", "decontaminate", "an n-gram")
    with pytest.raises(ValueError, match="no document"):
        documents.why("https://a.example/2", tmp_path)


def test_funnel_file_is_what_write_returns(tmp_path):
    assert (
        json.loads((documents.write(some(3), tmp_path), (tmp_path / "funnel.json").read_text())[1])[0]["documents"] == 3
    )
