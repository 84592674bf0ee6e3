"""Synthetic mathematics (step `math_data`): seeds -> rephrased, reversed, evolved -> solutions -> answer check.

AFM (arXiv 2407.21075, section 4.1.2) after MetaMath (arXiv 2309.12284) and WizardLM (arXiv 2304.12244). The
programmatic half rewrites by rule and verifies through a second program; the writer model, where the sources hold one,
rewrites the same seeds in its own words. A written problem stays where a program reads and solves it (`stories`); what
none reads is solved several times by a writer whose majority is believed (`majority`), else rejected as `unread`.
"""

import random
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from pathlib import Path

from openafm.scoring import answers
from openafm.stage import Config, Context, Metrics
from openafm.synthesis import stories, tasks
from openafm.synthesis.items import Collected, finish
from openafm.synthesis.open_problems import OpenConfig, open_problems
from openafm.synthesis.tasks import Example, Problem
from openafm.synthesis.writer import Writer, WriterConfig, line


class MathConfig(Config):
    """How much mathematics to make."""

    programmatic: tuple[str, ...] = tuple(tasks.MATH)
    """Programmatic tasks, out of `openafm.synthesis.tasks.MATH`."""
    per_task: int = 400
    """Programmatic examples of each of them."""
    largest: int = tasks.LARGEST
    """Largest operand."""
    seeds: int = 200
    """Seed problems that are rephrased, reversed and evolved by rule, four examples each."""
    written: int = 4
    """Seed problems that the writer model rewrites, each in four ways; 0 leaves the model out."""
    majority: bool = False
    """Keep problems that no program reads too, by the known answer or by more than half of the writer's solutions. For
    strong writers: of those that one of 135M parameters had a majority for, most were wrong."""
    solutions: int = 3
    """Solutions the writer samples for each such problem."""
    max_words: int = 20
    """Longest problem kept of the writer's, in words."""
    reasoning_gym: tuple[str, ...] = ()
    """Names of reasoning-gym generators to draw from as well (package `reasoning_gym`)."""
    writer: WriterConfig | None = None
    """A writer other than the sources' model."""
    open: OpenConfig | None = None
    """Problems that the writer makes up itself, for writers strong enough to solve them; none unless set."""


@dataclass(frozen=True)
class Seed:
    """A small sum from which others are made."""

    a: int
    sign: str
    b: int

    @property
    def task(self) -> str:
        """The task this is a problem of."""
        return "addition" if self.sign == "+" else "subtraction"

    @property
    def key(self) -> str:
        """The task's key: rewrites stay in the split of the problem they come from."""
        ordered = sorted((self.a, self.b)) if self.sign == "+" else [self.a, self.b]
        return f"{ordered[0]}{self.sign}{ordered[1]}"

    @property
    def expression(self) -> str:
        """What is to be computed."""
        return f"{self.a} {self.sign} {self.b}"

    @property
    def answer(self) -> int:
        """Its value."""
        return self.a + self.b if self.sign == "+" else self.a - self.b


TOPICS = {
    "apples": (("picks", "buys", "gets"), ("eats", "sells", "gives away")),
    "coins": (("finds", "gets", "earns"), ("spends", "loses", "gives away")),
    "books": (("buys", "gets", "finds"), ("sells", "loses", "gives away")),
    "toy cars": (("buys", "gets", "finds"), ("sells", "loses", "gives away")),
    "stamps": (("buys", "gets", "finds"), ("sells", "loses", "gives away")),
    "cakes": (("bakes", "buys", "gets"), ("eats", "sells", "gives away")),
    "pens": (("buys", "gets", "finds"), ("sells", "loses", "gives away")),
    "shells": (("finds", "gets", "picks"), ("loses", "sells", "gives away")),
}
"""What stories are about, with what makes more of it and what makes less."""


def _seeds(n: int, rng: random.Random) -> list[Seed]:
    """Distinct seeds."""
    found: dict[str, Seed] = {}
    for _ in range(100 * n):
        b, a = sorted((rng.randint(1, 9), rng.randint(1, rng.choice([9, 49]))))
        seed = Seed(a, rng.choice("+-"), b)
        if seed.answer > 0:
            found.setdefault(seed.expression, seed)
        if len(found) == n:
            break
    return list(found.values())


def rephrase(seed: Seed, rng: random.Random) -> tuple[str, str]:
    """The same question in other words; returns it with the expression that answers it."""
    a, b = seed.a, seed.b
    added = [f"Sum of {a} and {b}?", f"{a} plus {b} is?", f"How much is {a} and {b}?"]
    taken = [f"{a} minus {b} is?", f"{a} less {b}?", f"Difference of {a} and {b}?"]
    return rng.choice(added if seed.sign == "+" else taken), seed.expression


def reverse(seed: Seed, rng: random.Random) -> tuple[str, str]:
    """Hide an operand and ask for it, given the result."""
    a, sign, b, total = seed.a, seed.sign, seed.b, seed.answer
    if rng.random() < 0.5:
        return f"? {sign} {b} = {total}. Find ?", f"{total} {'-' if sign == '+' else '+'} {b}"
    return f"{a} {sign} ? = {total}. Find ?", f"{total} - {a}" if sign == "+" else f"{a} - {total}"


def deepen(seed: Seed, rng: random.Random) -> tuple[str, str]:
    """One more step."""
    c = rng.randint(1, 9)
    longer = f"{seed.expression} + {c}" if seed.answer < c or rng.random() < 0.5 else f"{seed.expression} - {c}"
    return f"{longer} = ?", longer


def widen(seed: Seed, rng: random.Random) -> tuple[str, str]:
    """The same sum in another setting."""
    topic, who = rng.choice(list(TOPICS)), rng.choice(["Tom", "Ann", "Max", "Eva"])
    verb = rng.choice(TOPICS[topic][seed.sign == "-"])
    thing = topic if seed.a > 1 else topic.removesuffix("s")
    return f"{who} has {seed.a} {thing}, {verb} {seed.b}. How many now?", seed.expression


RULES = {"rephrase": rephrase, "reverse": reverse, "deeper": deepen, "wider": widen}
"""The four ways to make a new problem of a seed; the writer's templates have the same names."""


def _by_rule(config: MathConfig, seeds: list[Seed], collected: Collected, rng: random.Random) -> None:
    """Rewrite every seed in all four ways; sympy, which saw none of our arithmetic, must get the same answer."""
    for seed in seeds[: config.seeds]:
        expected = {"rephrase": seed.answer, "wider": seed.answer}
        for name, rule in RULES.items():
            prompt, expression = rule(seed, rng)
            value = expected.get(
                name, sum(int(part) for part in expression.replace("- ", "-").replace("+ ", "").split())
            )
            row = tasks.example(f"math_{name}", tasks.number(prompt, value, seed.key), lineage=f"rule-{name}")
            collected.judge(row, None if answers.equal(expression, str(value)) else "answer_check", expression)


def _by_writer(config: MathConfig, seeds: list[Seed], collected: Collected, writer: Writer, rng: random.Random) -> None:
    """Let the model rewrite seeds and solve what it wrote."""
    for name in RULES:
        rows = [
            {"question": f"What is {s.expression}?", "answer": s.answer, "topic": rng.choice(list(TOPICS))}
            for s in seeds
        ]
        found = writer.write(name, rows, max_tokens=32, temperature=0.7)
        problems = [line(texts[0]) if texts else "" for texts in found]
        unread = [p for p in dict.fromkeys(problems) if config.majority and stories.read(p) is None]
        tries = writer.write(
            "solve", [{"question": p} for p in unread], n=config.solutions, max_tokens=12, temperature=0.5
        )
        solved = dict(zip(unread, tries, strict=True))
        for seed, prompt in zip(seeds, problems, strict=True):
            solutions = solved.get(prompt, [])
            row, reason = judge_written(name, seed, prompt, solutions, config.max_words)
            collected.judge(row, reason, " | ".join(line(s) for s in solutions))


def judge_written(
    name: str, seed: Seed, prompt: str, solutions: list[str], max_words: int
) -> tuple[Example, str | None]:
    """Make an example of a written problem, and say why it is rejected (None when kept).

    A problem that a program reads has that answer; rephrased and reversed ones must have the known one. Of the others,
    where there are solutions: of rephrased and reversed problems one right solution shows that they still ask for the
    known answer; of evolved ones more than half must agree, on a value that the problem's numbers can give.
    """
    shown = answers.numbers(prompt)
    known = {"rephrase": seed.answer, "reverse": hidden(seed, shown)}.get(name)
    values = [found[-1] for text in solutions if (found := answers.numbers(line(text)))]
    common, votes = Counter(values).most_common(1)[0] if values else (None, 0)
    read = stories.read(prompt)
    answer = known if known is not None else common if read is None else read
    problem = Problem(prompt, str(answer), seed.key, {"kind": "number", "answer": str(answer)})
    row = tasks.example(f"math_{name}", problem, lineage=f"writer-{name}")
    if not prompt.endswith("?"):
        return row, "no_question"
    if len(prompt.split()) > max_words:
        return row, "too_long"
    if name in ("rephrase", "deeper") and not {seed.a, seed.b} <= set(shown):
        return row, "numbers_lost"
    if name == "reverse" and known is None:
        return row, "not_reversed"
    if name == "rephrase" and len(shown) > 2:
        return row, "numbers_added"
    if read is not None:
        return row, None if known in (None, read) else "answer_check"
    if not solutions:
        return row, "unread"
    if known is not None:
        return row, None if known in values else "answer_check"
    if common is None or votes * 2 <= len(solutions):
        return row, "no_majority"
    return row, None if len(shown) > 1 and reachable(shown, common) else "unreachable"


def hidden(seed: Seed, shown: list[Fraction]) -> int | None:
    """The operand that a reversed problem asks for: it shows the result and the other one; None where it does not."""
    for known, asked in ((seed.b, seed.a), (seed.a, seed.b)):
        if sorted(shown) == sorted([Fraction(known), Fraction(seed.answer)]):
            return asked
    return None


def reachable(shown: list[Fraction], value: Fraction) -> bool:
    """Whether a value is a sum, with any signs, or the product of all the numbers a problem shows.

    Small models agree on wrong answers; what no step of arithmetic gives is one.
    """
    sums = {shown[0]}
    for number in shown[1:6]:
        sums = {total + sign * number for total in sums for sign in (1, -1)}
    return value in sums or -value in sums or value == prod(shown)


def _from_gym(config: MathConfig, seed: int) -> list[Example]:
    """Draw from reasoning-gym's generators; prompts too long for small models are left out by `max_words`."""
    if not config.reasoning_gym:
        return []
    try:
        import reasoning_gym
    except ImportError as error:
        raise ValueError("reasoning_gym is not installed: pip install reasoning-gym, or empty that setting") from error
    found = []
    for name in config.reasoning_gym:
        for entry in reasoning_gym.create_dataset(name, seed=seed, size=config.per_task):
            prompt, answer = entry["question"].strip(), str(entry["answer"])
            if len(prompt.split()) <= config.max_words:
                problem = tasks.answered(prompt, answer, prompt)
                found.append(tasks.example(f"gym_{name}", problem, lineage="reasoning-gym"))
    return found


def math_data(config: MathConfig, context: Context, *, sources: Path) -> Metrics:
    """Make mathematics examples: `examples.jsonl` and `rejected.jsonl`; yields by source in the metrics."""
    collected = Collected()
    for name in context.track(config.programmatic, "math tasks"):
        collected.keep(tasks.draw(name, config.per_task, context.seed, config.largest))
    collected.keep(_from_gym(config, context.seed))
    rng = random.Random(f"{context.seed}/math_data")
    seeds = _seeds(max(config.seeds, config.written), rng)
    _by_rule(config, seeds, collected, rng)
    wanted = config.written > 0 or config.open is not None
    writer = Writer.open(sources, context, wanted, config.writer)
    if writer.present and config.written:
        _by_writer(config, seeds[-config.written :], collected, writer, rng)
    if writer.present and config.open:
        open_problems(config.open, writer, collected, rng)
    return finish(context, collected, writer.used)
