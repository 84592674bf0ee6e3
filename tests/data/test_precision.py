import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.data import pii, precision
from openafm.data.precision import Hit, audit, evidence_hash, measure, read_labels


def hit(number: int, reason: str = "redacted.email") -> Hit:
    return Hit(reason, f"https://a.example/{number}", evidence_hash(str(number)), "web", "ab**cd")


def test_precision_counts_what_was_read_and_says_what_was_not():
    hits = [hit(number) for number in range(12)] + [hit(0), hit(1, "language")]
    labels = {hit(number).key: number >= 2 for number in range(10)} | {hit(99).key: False}
    found = measure(hits, labels)
    email = found["redacted.email"]
    assert (email["hits"], email["true"], email["false"], email["unlabelled"]) == (12, 8, 2, 2)
    # Wilson's interval of 8 of 10, as tables give it
    assert email["precision"] == 0.8 and email["precision_95"] == [0.4902, 0.9433]
    counts = {"hits": 1, "true": 0, "false": 0, "unlabelled": 1}
    assert found["language"] == counts | {"precision": None, "precision_95": None}


def test_the_hash_ignores_case_and_white_space_alone():
    assert evidence_hash("Some  Text\n") == evidence_hash("some text") != evidence_hash("some texts")
    assert evidence_hash("a", "b") != evidence_hash("b", "a")


def test_labels_are_read_and_broken_ones_named(tmp_path):
    line = {"kind": "language", "url": "https://a.example/", "hash": "0" * 12, "label": "false", "note": "english"}
    (tmp_path / "x.jsonl").write_text(json.dumps(line) + "\n")
    assert read_labels(tmp_path) == {("language", "https://a.example/", "0" * 12): False}
    (tmp_path / "y.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line | {"label": "maybe"}) + "\n")
    read_labels.cache_clear()
    with pytest.raises(ValueError, match=r"y\.jsonl:2"):
        read_labels(tmp_path)


def test_committed_labels_have_reasons_and_hold_no_personal_data():
    labels = read_labels()
    lines = [
        json.loads(line)
        for path in sorted((precision.Path(precision.__file__).parent / "labels").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert len(labels) == len(lines) >= 200  # no label twice
    assert all(line["note"].strip() and len(line["hash"]) == 12 for line in lines)
    for line in lines:
        assert not [s for s in pii.find(line["evidence"]) if s.kind != "ip"], line


def test_the_audit_is_sorted_and_each_hit_is_there_once(tmp_path):
    hits = [hit(number) for number in range(5)] * 2
    random.Random(0).shuffle(hits)
    assert audit(hits, tmp_path)["redacted.email"]["hits"] == 5
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [line["url"] for line in lines] == [hit(number).url for number in range(5)]


@settings(deadline=None, max_examples=50)
@given(st.permutations(["jane.roe@mail.org", "+1 212 736 5000", "93.184.216.34", "joe@firm.net"]), st.integers(0, 3))
def test_the_context_of_a_finding_shows_no_other_one(values, which):
    text = " or ".join(values)
    spans = pii.find(text)
    assert len(spans) == 4
    shown = pii.in_context(text, spans, spans[which])
    assert shown.count("[") == 1 and pii.masked(text, spans[which]) in shown
    assert all(value not in shown for value in values)
