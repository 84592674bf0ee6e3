"""A language model as judge: how much more it would say yes than no, or one of two answers than the other.

Both are read from its log-probabilities, without sampling.
"""

import math
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
    leaning: float | None = None
    """Log-odds of the first, mean of both orders: a liking for a place cancels. None where the judge only writes."""

    @property
    def preferred(self) -> float:
        """Whether it leans to the first, 1 or 0, however much it likes a place; `win` where it only writes."""
        return self.win if self.leaning is None else float(self.leaning > 0)


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
    forward = _leanings(judge, [(question, a, b) for question, a, b in rows])
    backward = _leanings(judge, [(question, b, a) for question, a, b in rows])
    found = []
    for ahead, behind in zip(forward, backward, strict=True):
        if ahead is None or behind is None:
            found.append(Verdict(0.5, False))
            continue
        consistent = (ahead > 0) != (behind > 0)
        leaning = (ahead - behind) / 2 if math.isfinite(ahead) else None
        found.append(Verdict(float(ahead > 0) if consistent else 0.5, consistent, leaning))
    return found


def _leanings(judge: Sampler, rows: Sequence[tuple[str, str, str]]) -> list[float | None]:
    """log p(A) - log p(B) of the answers shown as A and B, in nats; None where the judge says neither letter.

    Where the judge does not tell log-probabilities of chats, by what it writes: plus or minus infinity.
    """
    prompts: list[Prompt] = [
        [{"role": "user", "content": BETTER.format(question=question, a=a[:SHOWN], b=b[:SHOWN])}]
        for question, a, b in rows
    ]
    try:
        return [a - b for a, b in judge.score(prompts, ["A", "B"])]
    except ValueError:  # endpoints and engines do not score chats
        written = judge.sample(prompts, max_tokens=8, temperature=0.0)
    letters = [re.search(r"\b([AB])\b", answer.text) for (answer,) in written]
    return [None if letter is None else math.inf if letter[1] == "A" else -math.inf for letter in letters]
