"""Precision and recall on labelled texts: each kind's findings against what a reader marked."""

import re
from collections import Counter
from pathlib import Path

from openafm.data import pii

MARK = re.compile(r"\[\[(\w+)\|(.*?)\]\](?!\])")


def labelled() -> list[tuple[str, set[tuple[int, int, str]]]]:
    found = []
    for line in (Path(__file__).parent / "pii_labelled.txt").read_text("utf-8").splitlines()[1:]:
        text, marks, at = "", set(), 0
        for mark in MARK.finditer(line):
            text += line[at : mark.start()]
            marks.add((len(text), len(text) + len(mark[2]), mark[1]))
            text, at = text + mark[2], mark.end()
        found.append((text + line[at:], marks))
    return found


def overlap(first: tuple[int, int, str], second: tuple[int, int, str]) -> bool:
    return first[2] == second[2] and first[0] < second[1] and second[0] < first[1]


def test_precision_and_recall_on_labelled_texts():
    right, wrong, missed = Counter(), [], []
    for text, marks in labelled():
        spans = [(span.start, span.end, span.kind) for span in pii.find(text)]
        wrong += [(text[s:e], kind, text) for s, e, kind in spans if not any(overlap((s, e, kind), m) for m in marks)]
        missed += [(text[s:e], kind, text) for s, e, kind in marks if not any(overlap((s, e, kind), f) for f in spans)]
        right.update(kind for s, e, kind in marks if any(overlap((s, e, kind), f) for f in spans))
    assert not missed and not wrong, "\n".join(map(str, ["missed", *missed, "wrong", *wrong]))
    assert len(right) == 9 and right.total() >= 65
