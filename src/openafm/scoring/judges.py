"""A language model as judge: how much more it would say yes than no, or one of two answers than the other.

Both are read from its log-probabilities, without sampling.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from openafm.sampling.sampler import Prompt, Sampler

BETTER = (
    "Which answer to the question is better: more helpful, correct and to the point? Do not mind their order or length."
    "\n\nQuestion: {question}\n\nAnswer A: {a}\n\nAnswer B: {b}\n\nReply with one letter, A or B."
)
SHOWN = 2000
"""Characters of an answer that a judge reads."""


@dataclass(frozen=True)
class Verdict:
    """A judge's word on two answers."""

    win: float
    """Of the first: 1, 0, or 1/2 where the judge changed its mind with the order."""
    consistent: bool
    """It preferred the same answer in both orders."""


def yes_no(sampler: Sampler, prompts: Sequence[Prompt], yes: str = "Yes", no: str = "No") -> list[float]:
    """Return log p(yes) - log p(no) for each prompt, in nats; positive means yes.

    The difference of logits (arXiv 2406.04638) ranks documents where the hard answer would be the same for most.
    """
    return [row[0] - row[1] for row in sampler.score(prompts, [yes, no])]


def ask(sampler: Sampler, texts: Sequence[str], question: str) -> list[float]:
    """Put a yes/no question to each text in a chat turn of its own; returns log p(Yes) - log p(No)."""
    prompts: list[Prompt] = [
        [{"role": "user", "content": f"{text}\n\n{question} Answer with Yes or No."}] for text in texts
    ]
    return yes_no(sampler, prompts)


def compare(judge: Sampler, rows: Sequence[tuple[str, str, str]]) -> list[Verdict]:
    """Judge (question, first answer, second answer), in both orders, since judges favour a place (arXiv 2306.05685)."""
    forward = _first_is_better(judge, [(question, a, b) for question, a, b in rows])
    backward = _first_is_better(judge, [(question, b, a) for question, a, b in rows])
    found = []
    for ahead, behind in zip(forward, backward, strict=True):
        consistent = ahead is not None and behind is not None and ahead != behind
        found.append(Verdict(float(bool(ahead)) if consistent else 0.5, consistent))
    return found


def _first_is_better(judge: Sampler, rows: Sequence[tuple[str, str, str]]) -> list[bool | None]:
    """Whether the answer shown first is preferred; None where the judge says neither letter.

    By log-probabilities where the judge tells them for chats, else by what it writes.
    """
    prompts: list[Prompt] = [
        [{"role": "user", "content": BETTER.format(question=question, a=a[:SHOWN], b=b[:SHOWN])}]
        for question, a, b in rows
    ]
    try:
        return [a > b for a, b in judge.score(prompts, ["A", "B"])]
    except ValueError:  # endpoints and engines do not score chats
        written = judge.sample(prompts, max_tokens=8, temperature=0.0)
    letters = [re.search(r"\b([AB])\b", answer.text) for (answer,) in written]
    return [None if letter is None else letter[1] == "A" for letter in letters]
