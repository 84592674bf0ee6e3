"""Mathematics whose answers nobody knows beforehand (part of step `math_data`, `open` in its config).

A writer model makes up a problem from a topic, the problem is evolved deeper and wider, and each one is solved several
times; the answer that more than a set share of the solutions end with is kept, with the shortest of them. AFM (arXiv
2407.21075, section 4.1.2) adds a reward model's filter: the step `reward_filter` on what this one makes.
"""

import random
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from openafm.scoring import answers, checks
from openafm.stage import Config
from openafm.synthesis import tasks
from openafm.synthesis.items import Collected
from openafm.synthesis.tasks import Example
from openafm.synthesis.writer import Writer

EVOLVED = ("deeper", "wider")
_NEXT = re.compile(r"\n\s*\n|\n(?=(?:Topic|Problem|Harder|New|Solution)\b)")
"""Where what a model wrote ends and its next example begins."""
_ASKING = re.compile(r"\?\s*$|^(?:Find|Compute|Calculate|Determine|Evaluate|Simplify|Solve)\b", re.M)
_ENDING = re.compile(r"[Tt]he answer is\b:?\s*")
_VALUE = r"\d(?:[\d,]*\d)?(?:\.\d+)?"
_EQUATION = re.compile(rf"({_VALUE}(?:\s*[-+*/×÷]\s*{_VALUE})+)\s*=\s*(-?{_VALUE})(?!\d|\.\d|\s*[-+*/×÷%])")
_WITH_UNIT = re.compile(r"(\$?-?\d[\d,./]*%?) [A-Za-z ]+")


class OpenConfig(Config):
    """How many problems, and when an answer is believed."""

    problems: int = 40
    """Problems that the writer makes up."""
    rounds: int = 1
    """Times that all problems of the last round are evolved, each once deeper and once wider."""
    solutions: int = 8
    """Solutions the writer samples for each problem."""
    agreement: float = 0.5
    """Share of all solutions that must be passed by those with the kept answer."""
    max_words: int = 80
    """Longest problem kept, in words."""
    max_tokens: int = 256
    """Longest problem and longest solution asked for, in tokens."""


@dataclass(frozen=True)
class Posed:
    """A problem that the writer posed: its text, how it came about, and the one it goes back to."""

    text: str
    path: tuple[str, ...]
    root: str
    parent: str = ""

    @property
    def lineage(self) -> str:
        """`writer-open`, and every evolution since."""
        return "-".join(("writer", "open", *self.path))


@lru_cache(maxsize=1)
def topics() -> tuple[str, ...]:
    """What problems are asked for."""
    return tuple((Path(__file__).parent / "math_topics.txt").read_text().splitlines())


def open_problems(config: OpenConfig, writer: Writer, collected: Collected, rng: random.Random) -> None:
    """Pose, evolve, solve and judge: into `collected`."""
    posed = last = _pose(config, writer, rng)
    for _ in range(config.rounds):
        last = [child for how in EVOLVED for child in _evolve(config, writer, last, how)]
        posed = [*posed, *last]
    rows = [{"problem": each.text} for each in posed]
    solved = writer.write("open_solve", rows, n=config.solutions, max_tokens=config.max_tokens, temperature=0.7)
    for each, solutions in zip(posed, solved, strict=True):
        row, reason, votes = judge_open(config, each, [first(text) for text in solutions])
        collected.judge(row, reason, votes)


def _pose(config: OpenConfig, writer: Writer, rng: random.Random) -> list[Posed]:
    """First problems, the topics in turn; each text once."""
    order = rng.sample(topics(), min(config.problems, len(topics())))
    rows = [{"topic": topic} for topic in order]
    each = -(-config.problems // len(order))
    found = writer.write("open_problem", rows, n=each, max_tokens=config.max_tokens, temperature=1.0)
    texts = [first(row[turn]) for turn in range(each) for row in found][: config.problems]
    return [Posed(text, (), text) for text in dict.fromkeys(texts) if text]


def _evolve(config: OpenConfig, writer: Writer, posed: list[Posed], how: str) -> list[Posed]:
    rows = [{"problem": each.text} for each in posed]
    found = writer.write(f"open_{how}", rows, max_tokens=config.max_tokens, temperature=0.8)
    return [
        Posed(text, (*parent.path, how), parent.root, parent.text)
        for parent, texts in zip(posed, found, strict=True)
        if (text := first(texts[0]))
    ]


def first(text: str) -> str:
    """The first piece a model wrote, on one line; what follows is its next example."""
    return " ".join(_NEXT.split(text.strip(), maxsplit=1)[0].split())


def judge_open(config: OpenConfig, posed: Posed, solutions: list[str]) -> tuple[Example, str | None, str]:
    """Make an example of a problem and its solutions; say why it is rejected (None when kept), and how they voted."""
    votes = ballot(solutions)
    answer, supporters = votes[0] if votes else ("", [])
    problem = tasks.answered(posed.text, answer, posed.root)
    read = [text for text in supporters if checks.passes({"check": problem.check}, text)]  # as training will read it
    right = [text for text in read if adds_up(text)]
    worked = min(right or read or supporters, key=lambda text: (len(text), text), default="")
    row = tasks.example("math_open", replace(problem, answer=worked), lineage=posed.lineage)
    told = " | ".join(f"{said}: {len(texts)}" for said, texts in votes) or "no solution says what its answer is"
    reason = _reason(config, posed, len(supporters), len(solutions))
    return row, reason or ("answer_check" if not read else None if right else "wrong_arithmetic"), told


def _reason(config: OpenConfig, posed: Posed, agreeing: int, solutions: int) -> str | None:
    if not _ASKING.search(posed.text):
        return "no_question"
    if len(posed.text.split()) > config.max_words:
        return "too_long"
    if posed.text.casefold() == posed.parent.casefold():
        return "not_evolved"
    if not agreeing:
        return "no_answer"
    return None if agreeing > config.agreement * solutions else "no_majority"


def adds_up(solution: str) -> bool:
    """Whether every equation between numbers that a solution writes (`2 * 12 + 2 * 5 = 34`) holds.

    What is only a part of one is not judged (`apples * 2 = 12`, `2 * 12 + 2 * 5 = 24 + 10`).
    """
    for found in _EQUATION.finditer(solution):
        if not re.search(r"[-+*/×÷=(%]\s*$", solution[: found.start()]):
            left, right = (part.replace("×", "*").replace("÷", "/") for part in found.groups())
            if not answers.equal(left, right):
                return False
    return True


def ballot(solutions: list[str]) -> list[tuple[str, list[str]]]:
    """Answers with the solutions that end with them, most first; equal numbers, lists and algebra are one answer."""
    found: list[tuple[str, list[str]]] = []
    for solution in solutions:
        answer = ending(solution)
        if not answer:
            continue
        same = next((texts for known, texts in found if answers.equal(known, answer)), None)
        if same is None:
            found.append((answer, [solution]))
        else:
            same.append(solution)
    return sorted(found, key=lambda pair: -len(pair[1]))


def ending(solution: str) -> str:
    """What a solution ends with after its last "The answer is", without its unit; empty where it says no such thing."""
    _, *said = _ENDING.split(solution)
    if not said:
        return ""
    sentence = re.split(r"[.!]\s", said[-1], maxsplit=1)[0].strip(" .*").rpartition("=")[2].strip()
    with_unit = _WITH_UNIT.fullmatch(sentence)
    return with_unit[1] if with_unit else sentence
