"""Grades of pages that need no model, and 50 pages graded by hand: what the judge of `quality` is measured against.

`quality_labels.jsonl` holds {"url", "hash", "label", "note"} for the first 50 real pages of nano's sample, with a word
of reason each. Asked was what the judge is asked: is the text informative and well written, so that a student could
learn something from it? The reader was a language model working for the developers, one reading a page; not a panel.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.resources import files

import numpy as np

from openafm import jsonl
from openafm.data.documents import Row
from openafm.data.heuristics import STOP_WORDS
from openafm.data.precision import evidence_hash
from openafm.scoring.intervals import bootstrap
from openafm.stage import Metrics

HASHED = 600
"""Characters of a page, from its start, that a label is bound to."""
_LISTING = re.compile(r"^```.*?(?:^```$|\Z)", re.S | re.M)
_SENTENCE = re.compile(r"[A-Z][^.!?\n]{20,400}[.!?](?=\s|$)")
_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.M)


def grade(text: str) -> float:
    """Rate a text by rules, higher is better: whole sentences, function words, running prose of some length.

    The features are those of the heuristic filters of Gopher and C4, as a score instead of thresholds; the weights are
    round numbers and were not fitted. It knows form and nothing of content: well-written nonsense gets a high grade.
    """
    head = text[:6000]
    prose = _LISTING.sub("", head)
    words = prose.split()
    if not words:
        return 0.0
    in_sentences = sum(len(match[0]) for match in _SENTENCE.finditer(prose)) / max(1, len(prose))
    function_words = sum(word.lower().strip(".,;:()") in STOP_WORDS for word in words) / len(words)
    listing = 1 - len(prose) / len(head)
    items = len(_ITEM.findall(prose)) / (1 + prose.count("\n"))
    length = min(1.0, math.log1p(len(words)) / math.log(400))
    return round(2 * length + in_sentences + 2 * min(0.4, function_words) - 2 * listing - 2 * items, 4)


@cache
def read_labels() -> dict[str, tuple[str, bool]]:
    """Labels by address: hash of the page's beginning, and whether it was found good."""
    path = files("openafm.data") / "quality_labels.jsonl"
    labels = jsonl.parse(path.read_bytes(), path.name)
    return {label["url"]: (label["hash"], label["label"] == "good") for label in labels}


def against_labels(
    pages: Iterable[Row], scores: Mapping[str, float], area: Callable[[np.ndarray], float], seed: int
) -> Metrics:
    """How well scores (by id) tell pages found good by hand from the others; `area` is the area under the curve.

    {"n", "good", "auc", "auc_95", "at_chance"}; n is 0 where none of the labelled pages is there unchanged.
    """
    labels = read_labels()
    pairs = [
        (scores[page["id"]], labels[page["url"]][1])
        for page in pages
        if page["id"] in scores
        and page["url"] in labels
        and labels[page["url"]][0] == evidence_hash(page["text"][:HASHED])
    ]
    rows = np.array(pairs, float).reshape(-1, 2)
    if len(rows) < 10:
        return {"n": len(rows)}
    low, high = bootstrap(rows, area, seed=seed)
    return {
        "n": len(rows),
        "good": int(rows[:, 1].sum()),
        "auc": round(area(rows), 4),
        "auc_95": [round(low, 4), round(high, 4)],
        "at_chance": low <= 0.5,
    }
