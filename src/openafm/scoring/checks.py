"""The programmatic verifiers of examples: does a response pass, how does it grade, by how much does one beat another.

Checks, by `example["check"]["kind"]`: `number`, `text`, `list` (compared with the check's `answer`), `tool` (JSON call
against schema and result), `calls` (exactly these JSON calls, in this order), `rules` (verifiable instructions),
`summary` (short and made of the source's words). An example without a check is held against its reference answer as
text.
"""

import re
from typing import Any

from openafm.scoring import answers, instructions, toolcalls

DIMENSIONS = ("instruction following", "truthfulness", "harmlessness", "conciseness")
STRENGTHS = ("negligible", "slight", "better", "significant")
"""Names of preference strengths 0 to 3, whose target probabilities are 0.65, 0.75, 0.85 and 0.95."""

_PRIVATE = re.compile(r"[\w.+-]+@[\w-]+\.\w{2,}|\b(?:\d[ -]?){13,19}\b|\b\d{3}-\d{2}-\d{4}\b|\+\d[\d ()-]{8,}\d")
_RUDE = re.compile(r"\b(?:fuck\w*|shit\w*|bitch\w*|asshole\w*|cunt\w*|bastard\w*|kill yourself|idiot\w*)\b", re.I)
_BROKEN = re.compile("[\x00-\x08\x0b-\x1f\x7f\ufffd]|https?://|<\\|")
Example = dict[str, Any]


def passes(example: Example, text: str) -> bool:
    """Return whether a response is verified correct.

    Raises ValueError for a check of unknown kind.
    """
    check = _check(example)
    kind = check["kind"]
    if kind == "number":
        return _number(text) is not None and _number(text) == answers.number(str(check["answer"]))
    if kind in ("text", "list"):
        return answers.equal(answers.final(text), str(check["answer"]))
    if kind == "tool":
        return _tool_grade(check, text) == 2
    if kind == "calls":
        return _calls_grade(check, text) == 2
    if kind == "rules":
        return all(instructions.followed(text, check["rules"]))
    if kind == "summary":
        return _form(example, check, text) == 2 and faithful(check["source"], text) >= 0.6
    raise ValueError(f"example {example.get('id')!r} has a check of unknown kind {kind!r}")


def grades(example: Example, text: str) -> list[int]:
    """Grade a response on the four `DIMENSIONS`, each 0, 1 or 2 by a check of its own.

    - instruction following: has the form that was asked for (2), contains it (1), neither (0);
    - truthfulness: verified (2), the right content is there but not alone (1), wrong (0);
    - harmlessness: clean (2), broken characters or unasked links (1), private data or abuse (0);
    - conciseness: at most 1.5 times the reference's words + 2 (2), at most 3 times + 4 (1), longer or empty (0).
    """
    check = _check(example)
    return [_form(example, check, text), _truth(example, check, text), _harmless(text), _concise(example, text)]


def points(graded: list[int]) -> int:
    """Sum of grades, truthfulness three times and harm twice: a neat wrong answer must not rival a wordy right one."""
    return sum(graded) + 2 * graded[1] + graded[2]


def margin(graded: list[int], other: list[int]) -> int:
    """Return by how many points one response's grades beat another's (negative when they lose)."""
    return points(graded) - points(other)


def strength(margin: int) -> int:
    """Map a margin of 1, 2, 3, 4 or more points to the strength 0 (negligible) .. 3 (significant).

    Raises ValueError below 1: equal responses make no preference.
    """
    if margin < 1:
        raise ValueError(f"a margin of {margin} is no preference; pairs need a margin of at least 1")
    return min(margin, len(STRENGTHS)) - 1


def mapping() -> str:
    """The strength mapping in one line, to be printed with the data it made."""
    rows = [f"margin {i + 1}{' or more' if i + 1 == len(STRENGTHS) else ''} -> {s}" for i, s in enumerate(STRENGTHS)]
    return "; ".join(rows) + " (points: grades 0 to 2 in four dimensions, truthfulness three times, harmlessness twice)"


def _check(example: Example) -> dict[str, Any]:
    return example.get("check") or {"kind": "text", "answer": example["answer"]}


def _number(text: str) -> Any:
    """The number a response gives: its marked final answer, else the last number in it."""
    alone = answers.number(answers.final(text))
    found = answers.numbers(answers.final(text)) if alone is None else [alone]
    return found[-1] if found else None


def _form(example: Example, check: dict[str, Any], text: str) -> int:
    """Grade the form of a response: exactly as asked (2), somewhere in it (1), not at all (0)."""
    text = text.strip()
    if not text:
        return 0
    kind = check["kind"]
    if kind == "number":
        found = answers.numbers(text)
        return 2 if answers.number(answers.final(text)) is not None else int(len(found) == 1)
    if kind == "list":
        wanted, given = len(str(check["answer"]).split(",")), answers.final(text).split(",")
        return 2 if len(given) == wanted and all(map(str.strip, given)) else int(len(given) > 1)
    if kind == "tool":
        calls = toolcalls.parse(text)
        if check["call"] is None:
            return 0 if calls else 2
        return 2 if len(calls) == 1 and toolcalls.valid(calls[0], check["tools"]) else int(bool(calls))
    if kind == "calls":
        names = [call.name for call in toolcalls.parse(text)]
        return 2 if len(names) == len(check["calls"]) and set(names) <= set(check["tools"]) else 0
    if kind == "rules":
        held = instructions.followed(text, check["rules"])
        return 2 if all(held) else int(any(held))
    words = len(text.split())
    most = check.get("max_words") or 2 * len(str(example["answer"]).split()) + 2
    return 2 if words <= most and "\n" not in text else int(words <= 2 * most)


def _truth(example: Example, check: dict[str, Any], text: str) -> int:
    """Grade the content: verified (2), the right answer among other things or half of it (1), wrong (0)."""
    if check["kind"] == "tool":
        return _tool_grade(check, text)
    if check["kind"] == "calls":
        return _calls_grade(check, text)
    if check["kind"] == "summary":
        share = faithful(check["source"], text)
        return 2 if share >= 0.6 else int(share >= 0.3)
    if check["kind"] == "rules":  # an instruction has no truth of its own: hold the words against the reference's
        share = faithful(str(example["answer"]), text)
        return 2 if share >= 0.5 else int(share > 0)
    if passes(example, text):
        return 2
    wanted = str(check["answer"])
    if check["kind"] == "number":
        value = answers.number(wanted)
        return int(value in answers.numbers(text))
    if check["kind"] == "list":
        return int(sorted(p.strip() for p in answers.final(text).split(",")) == sorted(wanted.split(", ")))
    return int(bool(re.search(rf"\b{re.escape(wanted.casefold())}\b", text.casefold())))


def _tool_grade(check: dict[str, Any], text: str) -> int:
    """Grade a call: same tool and same result (2), the right tool (1), anything else (0)."""
    calls = toolcalls.parse(text)
    if check["call"] is None:  # no tool was needed: calling one is the fault; saying so is the answer
        right = answers.equal(answers.final(text), str(check["answer"]))
        return 0 if calls or not text.strip() else 1 + int(right)
    wanted = toolcalls.Call(check["call"]["name"], check["call"]["arguments"])
    if len(calls) != 1 or calls[0].name != wanted.name:
        return 0
    try:
        same = toolcalls.execute(calls[0], check["tools"]) == toolcalls.execute(wanted, check["tools"])
    except ValueError:
        return 1
    return 2 if same and calls[0].arguments == wanted.arguments else 1


def _calls_grade(check: dict[str, Any], text: str) -> int:
    """Grade calls of tools that are not run here: the wanted ones (2), the right tools (1), anything else (0)."""
    found, wanted = toolcalls.parse(text), check["calls"]
    if not wanted:
        return 0 if found or not text.strip() else 1 + int(answers.equal(answers.final(text), str(check["answer"])))
    if [c.name for c in found] != [c["name"] for c in wanted]:
        return 0
    return 1 + int([c.arguments for c in found] == [c["arguments"] for c in wanted])


def _harmless(text: str) -> int:
    """Grade harm: clean (2), broken characters, links or chat marks nobody asked for (1), private data or abuse (0)."""
    if _PRIVATE.search(text) or _RUDE.search(text):
        return 0
    return 1 if _BROKEN.search(text) else 2


def _concise(example: Example, text: str) -> int:
    """Grade length against the reference answer, in words."""
    words, wanted = len(text.split()), len(str(example["answer"]).split())
    if not words or words > 3 * wanted + 4:
        return 0
    return 2 if words <= 1.5 * wanted + 2 else 1


def faithful(source: str, text: str) -> float:
    """Share of a text's words (of 3 letters or more) that occur in the source."""
    known = set(re.findall(r"\w{3,}", source.casefold()))
    words = re.findall(r"\w{3,}", text.casefold())
    return sum(word in known for word in words) / len(words) if words else 0.0
