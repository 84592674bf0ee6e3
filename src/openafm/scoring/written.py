"""What a written answer of a ready task is worth: corrections, fields of JSON, tone, and what a text invents.

`SCORES` names the score of each kind of check that has one beside ROUGE-L; all are in [0, 1]. They are rules, read by
the data makers as filters and by the step `task_adapter` as its metric.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from difflib import SequenceMatcher
from typing import Any

from openafm.scoring.checks import faithful

Example = dict[str, Any]
Edit = tuple[int, int, tuple[str, ...]]
"""From which word to which of the faulty text, and the words that come there instead."""

NUMBER_WORDS = dict(
    zip("zero one two three four five six seven eight nine ten eleven twelve".split(), map(str, range(13)), strict=True)
)
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_NAME = re.compile(r"\b(?:[A-Z][\w'’-]*[a-z0-9]\w*|[A-Z]{2,}\w*|[a-z]+[A-Z]\w*)")
_SENTENCE_START = re.compile(r"(?:^|[.!?:;\n]\s*|[\"“(]\s*)$")
CONTRACTION = re.compile(r"\b\w+(?:n['’]t|['’](?:m|re|ve|ll|d))\b|\b(?:it|that|there|he|she|what|let)['’]s\b", re.I)
"""Marks of casual writing; a possessive 's is none."""


def invented(source: str, text: str) -> list[str]:
    """Names and numbers of a text that its source does not have, in order.

    A number is a run of digits, or a word from zero to twelve on either side. A name is a capitalised word inside a
    sentence, or one with capitals inside; a sentence's first word is a name only if it has capitals inside. It counts
    as known where the source has it in any spelling of case, with or without an s at its end.
    """
    told = source.casefold()
    numbers = _numbers(told)
    found = [match[0] for match in _NUMBER.finditer(text) if match[0] not in numbers]
    known = set(re.findall(r"\w+", told))
    for match in _NAME.finditer(text):
        word = match[0]
        first = _SENTENCE_START.search(text[: match.start()]) is not None
        if (first and word[1:].islower()) or CONTRACTION.fullmatch(word):
            continue
        parts = [part for part in re.findall(r"\w+", word.casefold()) if part not in ("s", "t")]
        if not all(part in known or part.removesuffix("s") in known for part in parts):
            found.append(word)
    return found


def _numbers(text: str) -> set[str]:
    words = re.findall(r"[a-z]+", text)
    return {*_NUMBER.findall(text), *re.findall(r"\d+", text), *(NUMBER_WORDS[w] for w in words if w in NUMBER_WORDS)}


def edits(faulty: str, text: str) -> Counter[Edit]:
    """The edits of words that turn one text into the other, by their longest common blocks (difflib)."""
    before, after = faulty.split(), text.split()
    operations = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    return Counter((i, j, tuple(after[k:m])) for kind, i, j, k, m in operations if kind != "equal")


def edit_score(example: Example, text: str) -> float:
    """F0.5 of the corrections made against those wanted (as in the CoNLL-2014 task: a wrong change weighs double).

    A text that had no fault scores 1 where it is left alone, else 0.
    """
    wanted, made = (edits(example["check"]["source"], answer) for answer in (example["answer"], text))
    right = (wanted & made).total()
    if not wanted or not made:
        return float(wanted == made)
    precision, recall = right / made.total(), right / wanted.total()
    return 1.25 * precision * recall / (0.25 * precision + recall) if right else 0.0


def field_score(example: Example, text: str) -> float:
    """F1 of the (field, value) pairs of a JSON object against those wanted; 0 where the text is no JSON object."""
    try:
        found = _pairs(json.loads(text))
    except ValueError:
        return 0.0
    wanted = _pairs(example["check"]["fields"])
    if not wanted and not found:
        return 1.0
    return 2 * (wanted & found).total() / (wanted.total() + found.total())


def _pairs(value: Any) -> Counter[tuple[str, str]]:
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    listed = {name: held if isinstance(held, list) else [held] for name, held in value.items()}
    return Counter((name, str(one).casefold()) for name, held in listed.items() for one in held)


def tone_score(example: Example, text: str) -> float:
    """1 where the tone is the one asked for, the text's own words are kept and nothing is invented; else 0.

    Formal: no contraction. Casual: a contraction, where the wanted answer has one. Kept: 60% of the wanted answer's
    words of three letters or more.
    """
    check = example["check"]
    contracted = CONTRACTION.search(text) is not None
    wanted = CONTRACTION.search(example["answer"]) is not None
    fits = contracted == wanted if check["tone"] == "casual" else not contracted
    return float(fits and faithful(text, example["answer"]) >= 0.6 and not invented(check["source"], text))


def reply_score(example: Example, text: str) -> float:
    """1 for a reply of 3 to `max_words` words that ends a sentence, or with a name, and invents nothing; else 0."""
    check, count = example["check"], len(text.split())
    before, _, last = text.strip().rpartition("\n")
    whole = last.endswith((".", "!", "?", "…", ")")) or (bool(before) and len(last.split()) <= 3)
    return float(3 <= count <= check["max_words"] and whole and not invented(check["source"], text))


SCORES: dict[str, tuple[str, Callable[[Example, str], float]]] = {
    "edits": ("F0.5 of corrections", edit_score),
    "fields": ("F1 of fields", field_score),
    "tone": ("in tone and kept", tone_score),
    "reply": ("fit to send", reply_score),
}
"""Kind of a check to the name of its score and the score of (example, answer)."""
