"""Programmatic tasks: short problems with verified answers that a model of a million weights can learn.

Each task draws a problem from a seeded generator. A problem's key says what it is made of (its operands, not its
wording): the step `sft_mixture` splits by it, so that no rewording of a held-out problem is ever trained on. Used by
the steps `math_data`, `tool_data` and `code_data`.
"""

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from openafm.scoring import answers
from openafm.scoring.toolcalls import TOOLS, WEEKDAYS, Tool

MONTHS = "January February March April May June July August September October November December".split()
NO_TOOL = "No tool needed."
LARGEST = 99
"""Largest operand where a recipe does not set another."""
Example = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """One problem: what is asked, the reference answer, how a response is checked, and what it is made of."""

    prompt: str
    answer: str
    key: str
    """The problem without its wording: equal keys are the same problem and share a split."""
    check: dict[str, Any] = field(default_factory=dict)


def number(prompt: str, answer: int, key: str) -> Problem:
    """A problem whose answer is a number."""
    return Problem(prompt, str(answer), key, {"kind": "number", "answer": str(answer)})


def text(prompt: str, answer: str, key: str) -> Problem:
    """A problem whose answer is one exact text, case and spacing aside."""
    return Problem(prompt, answer, key, {"kind": "text", "answer": answer})


def answered(prompt: str, answer: str, key: str) -> Problem:
    """A problem whose answer is a number or a text, whichever it looks like."""
    kind = "number" if answers.number(answer) is not None else "text"
    return Problem(prompt, answer, key, {"kind": kind, "answer": answer})


@lru_cache(maxsize=1)
def words() -> dict[str, list[str]]:
    """The package's short words by category."""
    rows = (line.split(": ") for line in (Path(__file__).parent / "words.txt").read_text().splitlines())
    return {category: listed.split() for category, listed in rows}


def _word(rng: random.Random) -> str:
    return rng.choice([word for listed in words().values() for word in listed])


def _operand(rng: random.Random, largest: int) -> int:
    """A number up to `largest`; half of the time of one digit."""
    return rng.randint(1, rng.choice([min(9, largest), largest]))


def addition(rng: random.Random, largest: int = LARGEST) -> Problem:
    """Add two numbers."""
    a, b = _operand(rng, largest), _operand(rng, largest)
    wording = rng.choice([f"{a} + {b} = ?", f"What is {a} + {b}?", f"Add {a} and {b}."])
    return number(wording, a + b, f"{min(a, b)}+{max(a, b)}")


def subtraction(rng: random.Random, largest: int = LARGEST) -> Problem:
    """Subtract the smaller number from the larger."""
    b, a = sorted([_operand(rng, largest), _operand(rng, largest)])
    wording = rng.choice([f"{a} - {b} = ?", f"What is {a} - {b}?", f"Take {b} from {a}."])
    return number(wording, a - b, f"{a}-{b}")


def multiplication(rng: random.Random, largest: int = LARGEST) -> Problem:
    """Multiply two numbers of the multiplication table."""
    a, b = rng.randint(2, 12), rng.randint(2, 9)
    return number(rng.choice([f"{a} * {b} = ?", f"What is {a} times {b}?"]), a * b, f"{min(a, b)}*{max(a, b)}")


def comparison(rng: random.Random, largest: int = LARGEST) -> Problem:
    """Tell the larger or smaller of two numbers."""
    a, b = rng.sample(range(1, largest + 1), 2)
    kind, answer = rng.choice([("larger", max(a, b)), ("smaller", min(a, b))])
    return number(f"Which is {kind}, {a} or {b}?", answer, f"{min(a, b)},{max(a, b)}")


def extreme(rng: random.Random, largest: int = LARGEST) -> Problem:
    """Find the largest or smallest of a short list."""
    values = rng.sample(range(1, largest + 1), rng.randint(3, 4))
    kind, answer = rng.choice([("largest", max(values)), ("smallest", min(values))])
    return number(f"Find the {kind}: {_listed(values)}", answer, _listed(sorted(values)))


def sorting(rng: random.Random, largest: int = LARGEST) -> Problem:
    """Sort three to five small numbers."""
    values = rng.sample(range(1, 21), rng.randint(3, 5))
    answer = _listed(sorted(values))
    return Problem(f"Sort: {_listed(values)}", answer, answer, {"kind": "list", "answer": answer})


def sequence(rng: random.Random, largest: int = LARGEST) -> Problem:
    """Continue an arithmetic sequence."""
    start, step = rng.randint(1, largest // 3), rng.randint(1, max(1, largest // 10))
    shown = [start + i * step for i in range(4)]
    wording = rng.choice(["What comes next: {}?", "Next number: {}, ?"])
    return number(wording.format(_listed(shown)), start + 4 * step, f"{start},{step}")


def parity(rng: random.Random, largest: int = LARGEST) -> Problem:
    """Tell whether a number is even or odd."""
    value = rng.randint(1, rng.choice([largest, 10 * largest]))
    kind, rest = rng.choice([("even", 0), ("odd", 1)])
    return text(f"Is {value} {kind}?", "yes" if value % 2 == rest else "no", str(value))


def units(rng: random.Random, largest: int = LARGEST) -> Problem:
    """Convert to a smaller unit."""
    large, small, factor = rng.choice(
        [("km", "meters", 1000), ("meters", "cm", 100), ("kg", "grams", 1000), ("hours", "minutes", 60),
         ("minutes", "seconds", 60), ("days", "hours", 24), ("weeks", "days", 7), ("years", "months", 12)]
    )  # fmt: skip
    count = rng.randint(2, 99 if factor in (100, 1000) else 12)
    return number(f"How many {small} are in {count} {large}?", count * factor, f"{count} {large}")


def weekday(rng: random.Random, largest: int = LARGEST) -> Problem:
    """Count days from a weekday."""
    day, days = rng.choice(WEEKDAYS), rng.randint(1, 10)
    sign, relation = rng.choice([(1, "after"), (-1, "before")])
    answer = WEEKDAYS[(WEEKDAYS.index(day) + sign * days) % 7]
    unit = "day" if days == 1 else "days"
    return text(f"Which day is {days} {unit} {relation} {day}?", answer, f"{day}{sign * days:+d}")


def letters(rng: random.Random, largest: int = LARGEST) -> Problem:
    """Put letters together or turn them round."""
    word = _word(rng)
    spaced, backwards = " ".join(word), " ".join(reversed(word))
    prompt, answer = rng.choice([(f"Join: {spaced}", word), (f"Reverse: {spaced}", backwards)])
    return Problem(prompt, answer, word, {"kind": "text", "answer": answer})


def spelling(rng: random.Random, largest: int = LARGEST) -> Problem:
    """Spell a word, tell its first letter or its length."""
    word = _word(rng)
    prompt, answer = rng.choice([(f"Spell {word}.", " ".join(word)), (f"First letter of {word}?", word[0])])
    return text(prompt, answer, word)


def counting(rng: random.Random, largest: int = LARGEST) -> Problem:
    """Count the items of a list or how often one of them stands there."""
    kinds = rng.sample(words()["animals"] + words()["fruits"], 2)
    items = [rng.choice(kinds) for _ in range(rng.randint(2, 6))]
    key = " ".join(items)
    if rng.random() < 0.5:
        return number(f"How many words: {key}", len(items), key)
    return number(f"How many times {items[0]}: {key}", items.count(items[0]), key)


def letter_counting(rng: random.Random, largest: int = LARGEST) -> Problem:
    """Count how often a letter stands in a made-up word, spelled so that each letter is a token."""
    letters = " ".join(rng.choices(rng.sample("abcdefghiklmnoprstuw", 4), k=rng.randint(3, 8)))
    wanted = rng.choice(sorted(set(letters.split())))
    return number(f"How many {wanted}: {letters}", letters.count(wanted), f"{wanted} {letters}")


def dates(rng: random.Random, largest: int = LARGEST) -> Problem:
    """Go a few days on or back in the calendar of a year of 365 days."""
    start, days = date(2023, 1, 1) + timedelta(rng.randrange(365)), rng.randint(1, 20)
    sign, relation = rng.choice([(1, "after"), (-1, "before")])
    end = start + timedelta(sign * days)
    shown, answer = (f"{day.day} {MONTHS[day.month - 1]}" for day in (start, end))
    unit = "day" if days == 1 else "days"
    return text(f"Which date is {days} {unit} {relation} {shown}?", answer, f"{shown}{sign * days:+d}")


def copying(rng: random.Random, largest: int = LARGEST) -> Problem:
    """Say a phrase once, or a word several times."""
    if rng.random() < 0.5:
        phrase = " ".join(_word(rng) for _ in range(rng.randint(2, 4)))
        return text(rng.choice([f"Repeat: {phrase}", f"Say: {phrase}"]), phrase, phrase)
    word, count = _word(rng), rng.randint(2, 5)
    rules = [{"rule": "words", "count": count}, {"rule": "times", "word": word, "count": count}]
    answer = " ".join([word] * count)
    return Problem(f"Say {word} {count} times.", answer, f"{word} {count}", {"kind": "rules", "rules": rules})


def naming(rng: random.Random, largest: int = LARGEST) -> Problem:
    """Name a few things of a kind, in a form that is asked for."""
    kind, count = rng.choice(["animals", "colors", "fruits", "tools"]), rng.randint(2, 4)
    chosen = rng.sample(words()[kind], count)
    rules: list[dict[str, Any]] = [{"rule": "members", "of": words()[kind], "count": count}]
    form = rng.choice(["", " No commas.", " In capitals.", f" Start with {chosen[0]}."])
    answer = " ".join(chosen) if "commas" in form else ", ".join(chosen)
    if "capitals" in form:
        answer, rules = answer.upper(), [*rules, {"rule": "uppercase"}]
    elif "commas" in form:
        rules.append({"rule": "no_commas"})
    elif form:
        rules.append({"rule": "starts_with", "word": chosen[0]})
    return Problem(f"Name {count} {kind}.{form}", answer, f"{count} {kind}{form}", {"kind": "rules", "rules": rules})


def expression(rng: random.Random, largest: int = LARGEST) -> Problem:
    """Tell what a short Python expression gives."""
    a, b, word, other = rng.randint(1, 20), rng.randint(2, 9), _word(rng), _word(rng)
    values = [rng.randint(1, 9) for _ in range(rng.randint(2, 4))]
    code, value = rng.choice(
        [(f"{a} // {b}", a // b), (f"{a} % {b}", a % b), (f"max({a}, {b})", max(a, b)), (f"{values}[0]", values[0]),
         (f"{values}[-1]", values[-1]), (f"len({values})", len(values)), (f"sum({values})", sum(values)),
         (f"'{word}' + '{other}'", word + other), (f"{a} < {b}", a < b), (f"{a} == {b}", a == b),
         (f"{values} + [{b}]", [*values, b]), (f"list(range({b}))", list(range(b))),
         (f"'{word}' == '{other}'", word == other)]
    )  # fmt: skip
    return text(f">>> {code}", str(value), code)


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values))


def call(name: str, **arguments: Any) -> str:
    """A tool call as the text a model must write, in the short form: {"add":{"a":1,"b":2}}."""
    return json.dumps({name: arguments}, separators=(",", ":"))


def _request(rng: random.Random, tool: Tool, largest: int) -> tuple[str, dict[str, Any]]:
    """Words of a user who needs one tool, and the arguments it must be called with."""
    a, b = _operand(rng, largest), _operand(rng, largest)
    if "days" in tool.parameters and "day" in tool.parameters:
        day, days = rng.choice(WEEKDAYS), rng.randint(2, 20)
        return f"Which day is {days} days after {day}?", {"day": day, "days": days}
    if "text" in tool.parameters:
        word = _word(rng)
        asked = {"upper": f"Write {word} in capitals.", "reverse": f"Write {word} backwards."}
        return asked.get(tool.name, f"How many letters has {word}?"), {"text": word}
    if list(tool.parameters) == ["a", "b"]:
        asked = {"add": f"Add {a} and {b}.", "subtract": f"Take {b} from {a}.", "multiply": f"What is {a} times {b}?"}
        return asked.get(tool.name, f"Which is larger, {a} or {b}?"), {"a": a, "b": b}
    unit, small = {"to_minutes": ("hours", "minutes"), "to_meters": ("km", "meters")}[tool.name]
    return f"How many {small} are {a} {unit}?", {unit: a}


ASKED_TOOLS = tuple(name for name in TOOLS if name != "add_days")
"""Tools that short requests exist for."""


def _tool_problem(rng: random.Random, tool: Tool, shown: list[Tool], largest: int) -> Problem:
    """A request beside the signatures of the tools at hand; no tool among them answers -> say so."""
    request, arguments = _request(rng, tool, largest)
    shown = rng.sample(shown, len(shown))
    prompt = f"Tools: {', '.join(other.signature for other in shown)}\n{request}"
    check: dict[str, Any] = {"kind": "tool", "tools": [other.name for other in shown]}
    if tool not in shown:
        return Problem(prompt, NO_TOOL, request, {**check, "call": None, "answer": NO_TOOL})
    wanted = {"name": tool.name, "arguments": arguments}
    return Problem(prompt, call(tool.name, **arguments), request, {**check, "call": wanted})


def single_tool(rng: random.Random, largest: int = LARGEST) -> Problem:
    """One tool at hand, and a request that needs it."""
    tool = TOOLS[rng.choice(ASKED_TOOLS)]
    return _tool_problem(rng, tool, [tool], largest)


def several_tools(rng: random.Random, largest: int = LARGEST) -> Problem:
    """Two or three tools at hand, similar ones preferred: distractors with the same arguments."""
    tool = TOOLS[rng.choice(ASKED_TOOLS)]
    others = [TOOLS[name] for name in ASKED_TOOLS if name != tool.name]
    similar = [other for other in others if other.parameters == tool.parameters] or others
    chosen = [rng.choice(similar)]
    if rng.random() < 0.3:
        chosen.append(rng.choice([other for other in others if other not in chosen]))
    return _tool_problem(rng, tool, [tool, *chosen], largest)


def no_tool(rng: random.Random, largest: int = LARGEST) -> Problem:
    """A tool at hand that the request does not need (intent detection, against over-triggering)."""
    tool, other = rng.sample([TOOLS[name] for name in ASKED_TOOLS], 2)
    if rng.random() < 0.5:
        return _tool_problem(rng, tool, [other], largest)
    request = rng.choice(
        [f"Say {_word(rng)}.", f"I like the {_word(rng)}.", f"Tell me about a {_word(rng)}.", "Hello!"]
    )
    check = {"kind": "tool", "tools": [other.name], "call": None, "answer": NO_TOOL}
    return Problem(f"Tools: {other.signature}\n{request}", NO_TOOL, f"{other.name} {request}", check)


Generator = Callable[[random.Random, int], Problem]


def _named(*generators: Generator) -> dict[str, Generator]:
    return {generator.__name__: generator for generator in generators}


MATH = _named(
    addition, subtraction, multiplication, comparison, extreme, sorting, sequence, parity, units, weekday, counting
)
LANGUAGE = _named(letters, spelling, copying, naming)
TOOL_USE = _named(single_tool, several_tools, no_tool)
CODE = _named(expression)
MORE = _named(letter_counting, dates)
"""Tasks of the recipe posttraining; no stage draws them unless its config names them."""
TASKS = MATH | LANGUAGE | TOOL_USE | CODE | MORE
"""Every task by name."""


def example(task: str, problem: Problem, origin: str = "synthetic", lineage: str = "programmatic") -> Example:
    """A problem as an example row."""
    digest = hashlib.sha256(f"{task}/{problem.prompt}".encode()).hexdigest()[:16]
    return {
        "id": f"{task}-{digest}",
        "task": task,
        "messages": [{"role": "user", "content": problem.prompt}],
        "answer": problem.answer,
        "check": problem.check or None,
        "origin": origin,
        "lineage": f"{lineage}/{task}/{problem.key}",
    }


def draw(task: str, n: int, seed: int | str, largest: int = LARGEST) -> list[Example]:
    """Draw up to `n` examples, no prompt twice; fewer where the task has fewer problems.

    Raises ValueError for an unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; known are {', '.join(TASKS)}")
    rng, tries = random.Random(f"{seed}/{task}"), 0
    found: dict[str, Example] = {}
    while len(found) < n and tries < 100 * n + 1000:
        problem, tries = TASKS[task](rng, largest), tries + 1
        found.setdefault(problem.prompt, example(task, problem))
    return list(found.values())
