"""Mathematics with answer equality: problems of reasoning-gym's generators under seeds that no recipe trains on.

Among them Apple's GSM-Symbolic templates (arXiv 2410.05229), grade-school word problems with fresh numbers. The final
answer of a greedy response counts where it is equal, as a number or as algebra (openafm.scoring.answers).
"""

import importlib
from collections.abc import Iterable
from typing import Any

from openafm.evaluation.suite.items import Item, NotMeasuredError
from openafm.evaluation.suite.subject import Subject
from openafm.evaluation.suite.task import Bench, Size, Task
from openafm.scoring import answers

GENERATORS = {
    "word_problems": ("gsm_symbolic",),
    "arithmetic": ("chain_sum", "basic_arithmetic", "fraction_simplification"),
    "number_theory": ("lcm", "gcd"),
    "algebra": ("simple_equations", "polynomial_multiplication"),
}
SEED = 20_251_128
"""Far from the seeds that recipes train and decontaminate with."""
TOKENS = 200
HOW = '{}\n\nThink briefly, then end with "The answer is" and the answer alone.'


def measure(subject: Subject, bench: Bench) -> Iterable[Item]:
    """Right or wrong for each problem, by kind."""
    for kind, names in bench.context.track(GENERATORS.items(), "problems"):
        rows = [row for name in names for row in _problems(name, -(-bench.size.items // len(names)))]
        chats = [[{"role": "user", "content": HOW.format(row["question"])}] for row in rows]
        for row, (answer,) in zip(rows, subject.ask(chats, TOKENS), strict=True):
            yield Item(kind, row["id"], float(right(answer.text, row["answer"])), 1.0,
                       {"asked": row["question"], "wanted": row["answer"], "answer": answer.text})  # fmt: skip


def _problems(name: str, count: int) -> list[dict[str, Any]]:
    try:
        gym = importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise NotMeasuredError("reasoning-gym is not installed: pip install reasoning-gym") from error
    made = gym.create_dataset(name, size=count, seed=SEED)
    return [
        {"id": f"{name}/{i}", "question": row["question"], "answer": str(row["answer"])} for i, row in enumerate(made)
    ]


def right(text: str, wanted: str) -> bool:
    """Whether a response's final answer equals the wanted one; of a sentence, its last number counts."""
    given = answers.final(text)
    if answers.equal(given, wanted):
        return True
    value, found = answers.number(wanted), answers.numbers(given)
    return value is not None and bool(found) and found[-1] == value


TASKS = (Task("math", "right final answers", measure, Size(12), Size(120)),)
