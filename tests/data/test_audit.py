import pytest

from openafm.data import documents
from openafm.data.audit import last_table, rejects


@pytest.fixture
def run(tmp_path):
    """A run whose last table dropped thirty documents for four reasons."""
    rows = [documents.document(f"http://kept/{n}", "web", f"kept {n}") for n in range(5)]
    earlier = list(rows)
    for n in range(20):
        row = documents.document(f"http://german/{n}", "web", f"deutsch {n}, write to jane.roe@mail.org")
        rows.append(documents.drop(row, "clean", "language", "de at 0.90"))
    for reason, count in (("pii.card", 4), ("pii.iban", 3)):
        for n in range(count):
            row = documents.document(f"http://{reason}/{n}", "code", "paid with 4111 1111 1111 1111 today")
            rows.append(documents.drop(row, "clean", reason, "1, as 41********11"))
    for n in range(3):
        rows.append(documents.drop(documents.document(f"http://copy/{n}", "web", ""), "dedup", "duplicate.near"))
    for name, table in (("clean", earlier), ("dedup", rows)):
        documents.write(table, tmp_path / name)
    return tmp_path


def test_rejects_are_drawn_evenly_over_reasons_and_again_by_the_seed(run):
    assert last_table(run).name == "dedup"
    found = rejects(run, count=8)
    reasons = [reject.reason for reject in found]
    assert {reason: reasons.count(reason) for reason in reasons} == {
        "language": 2, "pii.card": 2, "pii.iban": 2, "duplicate.near": 2,
    }  # fmt: skip
    assert rejects(run, count=8) == found and rejects(run, count=8, seed=1) != found
    assert len(rejects(run, count=100)) == 30
    assert {reject.reason for reject in rejects(run, "clean", "pii")} == {"pii.card", "pii.iban"}


def test_what_is_shown_holds_no_personal_data(run):
    shown = "\n".join(map(str, rejects(run, count=100)))
    assert "4111" not in shown and "<CARD>" in shown and "jane.roe" not in shown and "clean: language (de at" in shown


def test_filters_that_dropped_nothing_are_named_with_those_that_did(run, tmp_path):
    with pytest.raises(ValueError, match=r"there are clean: language, .*dedup: duplicate.near"):
        rejects(run, "quality")
    with pytest.raises(ValueError, match="holds no documents"):
        rejects(tmp_path / "nothing")
