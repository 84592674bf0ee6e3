"""Instructions a program can verify (after IFEval, arXiv 2311.07911): each rule is one short function of the response.

A rule in an example's check is {"rule": NAME, ...its arguments}.
"""

import json
import re
from collections.abc import Callable
from typing import Any


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’-]\w+)*", text)


def _is_json(text: str) -> bool:
    try:
        json.loads(text.strip().removeprefix("```json").removesuffix("```"))
    except ValueError:
        return False
    return True


def _sentences(text: str) -> int:
    return len(re.findall(r"[^.!?]+[.!?]+(?=\s|$)", text))


RULES: dict[str, Callable[..., bool]] = {
    "words": lambda text, count: len(_words(text)) == count,
    "words_at_most": lambda text, count: 0 < len(_words(text)) <= count,
    "words_at_least": lambda text, count: len(_words(text)) >= count,
    "sentences": lambda text, count: _sentences(text) == count,
    "lines": lambda text, count: len([line for line in text.splitlines() if line.strip()]) == count,
    "bullets": lambda text, count: len(re.findall(r"^\s*[-*] \S", text, re.M)) == count,
    "numbered": lambda text, count: re.findall(r"^\s*(\d+)\. \S", text, re.M) == [str(i + 1) for i in range(count)],
    "uppercase": lambda text: text.isupper(),
    "lowercase": lambda text: text.islower(),
    "title_case": lambda text: bool(_words(text)) and all(word[0].isupper() for word in _words(text)),
    "includes": lambda text, word: word.casefold() in text.casefold(),
    "excludes": lambda text, word: word.casefold() not in text.casefold(),
    "times": lambda text, word, count: [w.casefold() for w in _words(text)].count(word.casefold()) == count,
    "starts_with": lambda text, word: text.strip().casefold().startswith(word.casefold()),
    "ends_with": lambda text, word: text.strip().casefold().endswith(word.casefold()),
    "members": lambda text, of, count: len(found := _words(text.casefold())) == count == len(set(found) & set(of)),
    "quoted": lambda text: len(text.strip()) > 2 and text.strip()[0] == text.strip()[-1] == '"',
    "no_commas": lambda text: "," not in text,
    "json": _is_json,
}
"""Name of a rule to its test; the arguments after `text` are the rule's own."""


def followed(text: str, rules: list[dict[str, Any]]) -> list[bool]:
    """Return for each rule whether a response follows it; an empty response follows none.

    Raises ValueError for a rule that is not in `RULES` or lacks an argument.
    """
    return [bool(text.strip()) and _holds(text, rule) for rule in rules]


def _holds(text: str, rule: dict[str, Any]) -> bool:
    name, arguments = rule.get("rule"), {key: value for key, value in rule.items() if key != "rule"}
    if name not in RULES:
        raise ValueError(f"unknown instruction rule {name!r}; known are {', '.join(sorted(RULES))}")
    try:
        return RULES[name](text, **arguments)
    except TypeError as error:
        raise ValueError(f"instruction rule {name!r} with arguments {sorted(arguments)}: {error}") from error
