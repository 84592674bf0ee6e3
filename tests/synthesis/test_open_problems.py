"""Problems without a known answer: posed, evolved, solved several times and judged, by a scripted writer."""

import json
import random

import pytest

from openafm.sampling.sampler import Completion
from openafm.scoring import checks
from openafm.synthesis import mathematics
from openafm.synthesis.items import Collected
from openafm.synthesis.open_problems import OpenConfig, Posed, adds_up, ballot, ending, first, judge_open, open_problems
from openafm.synthesis.writer import Writer

CONFIG = OpenConfig(problems=3, rounds=1, solutions=4, max_words=30)


class Scripted:
    """A sampler that answers by the last example of a prompt; solutions of a problem are those of its script."""

    def __init__(self, solve):
        self.solve, self.asked = solve, []

    def sample(self, prompts, n=1, *, max_tokens, temperature=1.0, seed=0):
        self.asked.append((len(prompts), n))
        return [[Completion(self.answer(prompt, turn), logprobs=[0.0]) for turn in range(n)] for prompt in prompts]

    def answer(self, prompt, turn):
        _, _, asked = prompt.rpartition("\n")[0].rpartition("\n\n")[2].rpartition(": ")
        match prompt.rpartition("\n")[2]:
            case "Problem:":
                return f" Of {asked}, how many are there?\n\nTopic: other\nProblem: Ignored?"
            case "Harder:":
                return f" {asked} And one more?\nProblem: again"
            case "New:":
                return f" Elsewhere, {asked}"
        return " " + self.solve(asked, turn) + "\n\nProblem: x"


def collected_from(context, solve, config=CONFIG):
    collected, sampler = Collected(), Scripted(solve)
    open_problems(config, Writer(sampler, context("made")), collected, random.Random(0))
    return collected, sampler


def test_problems_are_posed_evolved_and_kept_by_majority(context):
    kept, sampler = collected_from(context, lambda asked, turn: f"Count them. The answer is {'7' if turn < 3 else 9}.")
    assert not kept.rejected and len(kept.kept) == 9
    sources = [row["lineage"].split("/")[0] for row in kept.kept]
    assert [sources.count(s) for s in ("writer-open", "writer-open-deeper", "writer-open-wider")] == [3, 3, 3]
    for row in kept.kept:
        assert row["answer"] == "Count them. The answer is 7." and row["check"] == {"kind": "number", "answer": "7"}
        assert checks.passes(row, row["answer"]) and not checks.passes(row, "The answer is 9.")
        root = row["lineage"].split("/", 2)[2]  # a problem's rewrites share its split
        assert root in row["messages"][0]["content"] or "Elsewhere" in row["messages"][0]["content"]
    assert len({row["lineage"].split("/", 2)[2] for row in kept.kept}) == 3
    assert sampler.asked == [(3, 1), (3, 1), (3, 1), (9, 4)]


def test_two_rounds_evolve_what_was_evolved(context):
    config = CONFIG.model_copy(update={"rounds": 2, "problems": 1})
    kept, _ = collected_from(context, lambda *_: "The answer is 1.", config)
    assert sorted(row["lineage"].split("/")[0] for row in kept.kept) == sorted(
        f"writer-open{path}" for path in ("", "-deeper", "-wider", "-deeper-deeper", "-deeper-wider", "-wider-deeper",
                                          "-wider-wider")
    )  # fmt: skip


GOOD = "How many legs have 3 dogs and 2 birds?"


@pytest.mark.parametrize(
    ("text", "solutions", "reason", "told"),
    [
        (GOOD, ["The answer is 16."] * 3 + ["?"], None, "16: 3"),
        (GOOD, ["The answer is 1/2.", "The answer is 0.5.", "the answer is: 50%", "The answer is 3."], None, "1/2: 3"),
        (GOOD, ["The answer is 16."] * 2 + ["The answer is 14."] * 2, "no_majority", "16: 2 | 14: 2"),
        (GOOD, ["The answer is 16."] * 2 + ["I do not know."] * 2, "no_majority", "16: 2"),
        (GOOD, ["16"] * 4, "no_answer", "no solution says"),
        (GOOD, [], "no_answer", "no solution says"),
        ("There are 3 dogs.", ["The answer is 16."] * 4, "no_question", "16: 4"),
        ("Find the sum of 3 and 4.", ["The answer is 7."] * 4, None, "7: 4"),
        ("word " * 40 + "?", ["The answer is 7."] * 4, "too_long", "7: 4"),
        (GOOD, ["So the answer is red. The answer is red. Yes"] * 4, "answer_check", "red: 4"),
        (GOOD, ["3 * 4 = 14 and 4, so 14 + 4 = 18. The answer is 18."] * 4, "wrong_arithmetic", "18: 4"),
        (GOOD, ["3 * 4 = 13. The answer is 16.", "3 * 4 + 2 * 2 = 16. The answer is 16."] * 2, None, "16: 4"),
        ("Simplify x + x.", ["The answer is 2x.", "The answer is 2*x", "The answer is (x + x)", "?"], None, "2x: 3"),
    ],
)
def test_open_problems_are_judged(text, solutions, reason, told):
    row, found, votes = judge_open(CONFIG, Posed(text, (), text), solutions)
    assert found == reason and votes.startswith(told)
    if reason is None:
        assert checks.passes(row, row["answer"])


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("The answer is 16. The answer is 18. And so on.", "18"), ("The answer is: **3/4**.", "3/4"), ("It is 4.", ""),
        ("so the answer is 60 + 60 = 120 feet.", "120"), ("The answer is $1.10 in all", "$1.10"), ("The answer is", ""),
        ("The answer is x + 1.", "x + 1"), ("The answer is (1, 2).", "(1, 2)"),
        ("The answer is red birds", "red birds"),
    ],
)  # fmt: skip
def test_a_solution_ends_with_its_answer(solution, answer):
    assert ending(solution) == answer


@pytest.mark.parametrize(
    ("solution", "sound"),
    [
        ("2 * 12 + 2 * 5 = 24 + 10 = 34.", True), ("27 + 3 = 50, so", False), ("6 apples * 2 = 12", True),
        ("1,200 / 4 = 300.", True), ("3 × 4 = 12, 12 ÷ 5 = 2.4", True), ("10 - 6 = 6", False), ("1/0 = 3", False),
        ("24 + 10 = 33 in all", False), ("It is 4.", True), ("1 / 3 = 0.33", False),
    ],
)  # fmt: skip
def test_equations_of_a_solution_must_hold(solution, sound):
    assert adds_up(solution) == sound


def test_a_problem_that_did_not_change_is_no_new_one():
    posed = Posed(GOOD.upper(), ("deeper",), GOOD, GOOD)
    assert judge_open(CONFIG, posed, ["The answer is 16."] * 4)[1] == "not_evolved"


def test_the_shortest_solution_of_the_majority_is_kept_and_text_is_cut_at_the_next_example():
    assert ballot(["So 4 + 4. The answer is 8.", "The answer is 8", "The answer is 9."])[0][1][1] == "The answer is 8"
    row, _, _ = judge_open(CONFIG, Posed(GOOD, (), GOOD), ["Long way. The answer is 8.", "The answer is 8."] * 2)
    assert row["answer"] == "The answer is 8."
    assert first("  One\n two. \nHarder: three") == "One two." and first("One\n\nTwo") == "One" and first("\n") == ""


def test_the_step_counts_open_problems_and_without_them_nothing_changes(context, sources):
    base = mathematics.MathConfig(per_task=3, seeds=3, written=1, solutions=1)
    with_open = base.model_copy(update={"open": OpenConfig(problems=2, rounds=1, solutions=2, max_tokens=8)})
    without, made = context("a"), context("b")
    mathematics.math_data(base, without, sources=sources)
    metrics = mathematics.math_data(with_open, made, sources=sources)
    assert sum(n["made"] for source, n in metrics["yield"].items() if source.startswith("writer-open")) > 0
    old = [json.loads(line) for line in (without.out / "rejected.jsonl").read_text().splitlines()]
    new = [json.loads(line) for line in (made.out / "rejected.jsonl").read_text().splitlines()]
    assert [row for row in new if row["task"] != "math_open"] == old
    alone = base.model_copy(update={"written": 0, "open": with_open.open})
    yields = mathematics.math_data(alone, context("c"), sources=sources)["yield"]
    assert "writer-rephrase" not in yields and any(source.startswith("writer-open") for source in yields)
