"""Synthetic code (step `code_data`): topics -> problems -> tests and several solutions -> all run -> the best is kept.

AFM (arXiv 2407.21075, section 4.1.2): self-instruct problems from 71 topics (`topics.txt`), unit tests and several
solutions from the model, the one kept that passes most above a threshold. All code, ours and the model's, runs in the
sandbox. A kept solution goes to `solutions.jsonl`; as small models can hardly write one, `examples.jsonl` asks them
what kept solutions return, and the answers come from the sandbox too.
"""

import ast
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from openafm import jsonl
from openafm.sampling import sandbox
from openafm.sampling.interpreter import Limits
from openafm.stage import Config, Context, Metrics
from openafm.synthesis import tasks
from openafm.synthesis.items import Collected, finish
from openafm.synthesis.tasks import Example, Problem
from openafm.synthesis.writer import Writer, WriterConfig, line

FOLDER = Path(__file__).parent
RUNNER = """
import json, sys
def main():
    program, calls, inputs = json.load(sys.stdin)
    space = {}
    exec(program, space)
    def value(function, *arguments):
        try:
            return repr(function(*arguments))
        except Exception:
            return None
    results = [value(eval, "f(" + call + ")", space) for call in calls]
    values = [value(space["f"], item) for item in inputs]
    print(json.dumps({"results": results, "values": values}))
main()
"""
"""Runs inside the sandbox: the program, then f on what each test gives it and on each input.

What a test expects stays outside: a program that prints a verdict, or overloads `==`, forges nothing."""


class CodeConfig(Config):
    """How much code to make."""

    topics: int = 71
    """Topics used, from the head of `topics.txt`."""
    outputs: int = 12
    """Inputs tried on each kept solution, one example each."""
    per_task: int = 900
    """Programmatic examples of each task of `openafm.synthesis.tasks.CODE`."""
    threshold: float = 0.75
    """Share of its tests that a kept solution must pass."""
    written: int = 4
    """Problems that the writer model makes up; 0 leaves the model out."""
    solutions: int = 3
    """Solutions the writer samples for each of them."""
    max_answer: int = 24
    """Longest printed result kept, in characters."""
    writer: WriterConfig | None = None
    """A writer other than the sources' model."""


@dataclass(frozen=True)
class Exercise:
    """A problem with its tests and the solutions that compete."""

    topic: str
    text: str
    tests: list[str]
    programs: list[str]
    inputs: list[Any]
    source: str


@dataclass(frozen=True)
class Verdict:
    """What one program did: which tests it passed, what it returned for each input (None where it failed)."""

    passed: list[bool]
    values: list[str | None]
    error: str = ""

    @property
    def share(self) -> float:
        """Share of tests passed."""
        return sum(self.passed) / len(self.passed) if self.passed else 0.0


def topics() -> list[str]:
    """The 71 topics."""
    return (FOLDER / "topics.txt").read_text().splitlines()


def given_and_wanted(test: str) -> tuple[str, Any] | None:
    """Read `assert f(GIVEN) == WANTED`: the arguments as text and the literal value; None for any other line."""
    try:
        match ast.parse(test).body:
            case [ast.Assert(ast.Compare(ast.Call(ast.Name("f")) as call, [ast.Eq()], [wanted]), None)]:
                arguments = [ast.unparse(part) for part in (*call.args, *call.keywords)]
                return ", ".join(arguments), ast.literal_eval(wanted)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return None
    return None


def judge(exercises: list[Exercise], limits: Limits = Limits()) -> list[list[Verdict]]:
    """Run every program of every exercise in the sandbox, two at a time; a row an exercise, a verdict a program."""
    jobs = []
    for exercise in exercises:
        calls = [told[0] for test in exercise.tests if (told := given_and_wanted(test))]
        jobs += [sandbox.Job(RUNNER, json.dumps([program, calls, exercise.inputs])) for program in exercise.programs]
    results = iter(sandbox.run_all(jobs, limits))
    return [[_verdict(next(results), exercise) for _ in exercise.programs] for exercise in exercises]


def _verdict(result: sandbox.Result, exercise: Exercise) -> Verdict:
    """Read a run; the model's own prints may precede our line, and anything unreadable fails every test."""
    failed = Verdict([False] * len(exercise.tests), [None] * len(exercise.inputs))
    if result.timed_out or result.exit_code:
        return replace(failed, error="timeout" if result.timed_out else result.stderr.strip()[-200:])
    read = [given_and_wanted(test) for test in exercise.tests]
    try:
        told = json.loads(result.stdout.splitlines()[-1])
        results, values = list(told["results"]), [v if isinstance(v, str) else None for v in told["values"]]
    except (ValueError, IndexError, KeyError, TypeError):
        return replace(failed, error="output unreadable")
    if (len(results), len(values)) != (sum(map(bool, read)), len(exercise.inputs)):
        return replace(failed, error="output unreadable")
    given = iter(results)
    return Verdict([test is not None and same_value(next(given), test[1]) for test in read], values)


def same_value(told: Any, wanted: Any) -> bool:
    """Whether the printed form of a result is that of the wanted value, compared as plain Python values."""
    try:
        return isinstance(told, str) and bool(ast.literal_eval(told) == wanted)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return False


def seeds(config: CodeConfig, rng: random.Random) -> list[Exercise]:
    """The package's own exercises, one a topic, with fresh inputs to try."""
    rows = {row["topic"]: row for row in yaml.safe_load((FOLDER / "code_seeds.yaml").read_text())}
    found = []
    for topic in topics()[: config.topics]:
        row = rows[topic]
        tests = [f"assert f({given!r}) == {wanted!r}" for given, wanted in row["tests"]]
        inputs = _inputs([given for given, _ in row["tests"]], config.outputs, rng)
        programs = [f"f = lambda x: {solution}" for solution in row["solutions"]]
        found.append(
            Exercise(topic, f"Write f(x) that returns {row['problem']}.", tests, programs, inputs, "programmatic")
        )
    return found


def _inputs(like: list[Any], count: int, rng: random.Random) -> list[Any]:
    """Distinct values of the kind the tests use: a number of their size, a short word, a list of digits."""
    highest = max((abs(v) for v in like if isinstance(v, int)), default=0)
    found: list[Any] = []
    for _ in range(4 * count):
        if isinstance(like[0], str):
            value: Any = rng.choice([w for listed in tasks.words().values() for w in listed])
        elif isinstance(like[0], list):
            value = [rng.randint(1, 9) for _ in range(rng.randint(2, 4))]
        else:
            value = rng.randint(min(1, min(like)), max(highest, 6))
        if value not in found and len(found) < count:
            found.append(value)
    return found


def _written(config: CodeConfig, writer: Writer, rng: random.Random) -> list[Exercise]:
    """Problems, tests and solutions by the writer model; tests are written without sight of a solution."""
    chosen = rng.sample(topics(), config.written)
    begun = writer.write("code_problem", [{"topic": topic} for topic in chosen], max_tokens=24)
    problems = [f"Write f(x) that returns {line(texts[0])}" for texts in begun]
    rows = [{"problem": problem} for problem in problems]
    solved = writer.write("code_solution", rows, n=config.solutions, max_tokens=32)
    tested = writer.write("code_tests", rows, n=config.solutions, max_tokens=48)
    return [
        Exercise(topic, problem, agreed(tests), [program(text) for text in solutions], [], "writer")
        for topic, problem, solutions, tests in zip(chosen, problems, solved, tested, strict=True)
    ]


def asserts(text: str) -> list[str]:
    """The assert lines on f with a literal result that a model wrote before its next exercise, each once."""
    lines = dict.fromkeys(re.findall(r"^assert f\(.+\) == .+$", text.partition("#")[0], re.M))
    return [test for test in lines if given_and_wanted(test)][:8]


def agreed(texts: Sequence[str]) -> list[str]:
    """The tests of several tries; where two want another result of the same call, the one written more often stays.

    A tie says nothing, and goes.
    """
    wanted: dict[str, Counter[str]] = defaultdict(Counter)
    for call, value in filter(None, (given_and_wanted(test) for text in texts for test in asserts(text))):
        wanted[call][repr(value)] += 1
    found = []
    for call, votes in wanted.items():
        (value, most), *others = votes.most_common()
        if not others or most > others[0][1]:
            found.append(f"assert f({call}) == {value}")
    return found[:8]


def program(text: str) -> str:
    """The function whose body a model wrote after `def f(x):`: the lines up to the first that is not indented."""
    body = []
    for row in text.rstrip().splitlines():
        if row.strip() and not row.startswith((" ", "\t")):
            break
        body.append(row.rstrip())
    return "\n".join(["def f(x):", *body]).rstrip()


def _keep(
    config: CodeConfig, exercise: Exercise, verdicts: list[Verdict], collected: Collected, solutions: list[Example]
) -> None:
    """Keep the solution that passes most (the shortest of equals), reject the others, and ask what the best returns."""
    order = sorted(
        range(len(verdicts)), key=lambda i: (-verdicts[i].share, len(exercise.programs[i]), exercise.programs[i])
    )
    for rank, index in enumerate(order):
        code, verdict = exercise.programs[index], verdicts[index]
        problem = Problem(exercise.text, code, exercise.topic)
        row = tasks.example("code_solution", problem, lineage=f"{exercise.source}-solution")
        row |= {"id": f"{row['id']}-{index}", "topic": exercise.topic, "tests": exercise.tests, "passed": verdict.share}
        reason = _reason(config, exercise, verdict, rank)
        if reason:
            collected.judge(row, reason, verdict.error)
        else:
            solutions.append(row)
            collected.keep(_outputs(config, exercise, code, verdict))


def _reason(config: CodeConfig, exercise: Exercise, verdict: Verdict, rank: int) -> str | None:
    if len(exercise.tests) < 2:
        return "too_few_tests"
    if verdict.share < config.threshold:
        return "crashed" if verdict.error else "tests_failed"
    return "not_the_best" if rank else None


def _outputs(config: CodeConfig, exercise: Exercise, code: str, verdict: Verdict) -> list[Example]:
    """Examples that ask what a kept one-line solution returns; long results are left out."""
    found = []
    for given, value in zip(exercise.inputs, verdict.values, strict=True):
        key = f"{code}/{given!r}"
        if value is not None and len(value) <= config.max_answer:
            answer = value.strip("'")
            problem = Problem(f"{code}\nf({given!r})", answer, key, {"kind": "text", "answer": answer})
            found.append(tasks.example("code_output", problem, lineage=f"{exercise.source}-output"))
    return found


def code_data(config: CodeConfig, context: Context, *, sources: Path) -> Metrics:
    """Make code examples: `examples.jsonl`, `solutions.jsonl` (problem -> program, with tests) and `rejected.jsonl`.

    Programs are left out where there is no sandbox to run them in, and the metrics say so.
    """
    rng = random.Random(f"{context.seed}/code_data")
    collected, solutions = Collected(), list[Example]()
    for task in tasks.CODE:
        collected.keep(tasks.draw(task, config.per_task, context.seed))
    backend = sandbox.backend()  # without one nothing is run: the programmatic tasks, whose answers are known, remain
    exercises = seeds(config, rng) if backend != "none" else []
    writer = Writer.open(sources, context, config.written > 0 and backend != "none", config.writer)
    if writer.present:
        exercises += _written(config, writer, rng)
    for start in context.track(range(0, len(exercises), 8), "code in the sandbox"):
        some = exercises[start : start + 8]
        for exercise, verdicts in zip(some, judge(some), strict=True):
            _keep(config, exercise, verdicts, collected, solutions)
    jsonl.write(context.out / "solutions.jsonl", solutions)
    metrics = finish(context, collected, writer.used, solutions)
    kept_topics = {row["topic"] for row in solutions}
    metrics |= {"solutions": len(solutions), "topics": len(kept_topics), "sandbox": backend}
    if backend == "none":
        metrics["headline"] = (
            f"no sandbox here: {metrics['examples']} examples whose answers are known, no programs "
            "(`openafm doctor` says how to get one; then --from code_data)"
        )
    return metrics
