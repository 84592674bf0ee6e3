"""Win rate by a judge: MT-bench's questions (Zheng et al., arXiv 2306.05685), both orders of the two answers judged.

A win in both orders counts 1, a loss in both 0, and a judge that changes its mind with the order is taken for a tie,
1/2 (openafm.scoring.judges). The opponent is another model, or GPT-4's answers to the thirty questions that have one.
How often the judge keeps its mind is told beside the rate: near one half it judges the order and not the answers.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

from openafm.evaluation.suite.items import Item, NotMeasuredError
from openafm.evaluation.suite.material import spread
from openafm.evaluation.suite.subject import Subject
from openafm.evaluation.suite.task import Bench, Size, Task
from openafm.sampling.sampler import Sampler
from openafm.scoring.judges import compare

TOKENS = 160
NO_JUDGE = "it needs a judge: --judge MODEL (a folder, a package, or URL#MODEL of an OpenAI-compatible server)"


def reference(subject: Subject, bench: Bench) -> Iterable[Item]:
    """Wins over GPT-4's answers."""
    judge = _judge(bench)
    answers = {row["question_id"]: row["choices"][0]["turns"][0] for row in bench.material.rows("mt_bench_answers")}
    rows = [row for row in bench.material.rows("mt_bench") if row["question_id"] in answers]
    rows = spread(rows, bench.size.items)
    return _judged(judge, rows, _answers(subject, rows), [answers[row["question_id"]] for row in rows])


def _against(other: Subject, subject: Subject, bench: Bench) -> Iterable[Item]:
    """Wins over another model."""
    judge = _judge(bench)
    rows = spread(bench.material.rows("mt_bench"), bench.size.items)
    return _judged(judge, rows, _answers(subject, rows), _answers(other, rows))


def against(other: Subject, judge: str) -> Task:
    """The task of winning over `other`, judged by `judge`."""
    measure = partial(_against, other)
    measure.__module__ = __name__
    return Task(f"wins_over_{other.name}", "win rate, a judge's", measure, Size(20), Size(80), ("mt_bench",),
                guess=0.5, version=f"{other.digest} {judge}")  # fmt: skip


def _answers(subject: Subject, rows: list[dict[str, Any]]) -> list[str]:
    chats = [[{"role": "user", "content": row["turns"][0]}] for row in rows]
    return [answer.text for (answer,) in subject.ask(chats, TOKENS)]


def _judge(bench: Bench) -> Sampler:
    if bench.judge is None:
        raise NotMeasuredError(NO_JUDGE)
    return bench.judge


def _judged(judge: Sampler, rows: list[dict[str, Any]], ours: list[str], theirs: list[str]) -> Iterable[Item]:
    asked = [row["turns"][0] for row in rows]
    for row, mine, other, verdict in zip(
        rows, ours, theirs, compare(judge, list(zip(asked, ours, theirs, strict=True))), strict=True
    ):
        name = str(row["question_id"])
        yield Item("wins", name, verdict.win, 1.0, {"asked": row["turns"][0], "ours": mine, "theirs": other})
        yield Item("same_in_both_orders", name, float(verdict.consistent))


TASKS = (Task("wins_over_reference", "win rate over GPT-4's answers, a judge's", reference, Size(12), Size(30),
              ("mt_bench", "mt_bench_answers"), guess=0.5),)  # fmt: skip
