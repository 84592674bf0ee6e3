"""A language model as judge: how much more it would say yes than no, or one of two answers than the other.

Both are read from its log-probabilities, without sampling.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from openafm.sampling.sampler import Prompt, Sampler


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


@dataclass(frozen=True)
class Preference:
    """What a judge makes of two answers that it was shown in both orders."""

    margin: float
    """log p(first is better) - log p(second is), in nats, the mean of both orders: a liking for a place cancels out."""
    agreed: bool
    """Whether both orders prefer the same answer."""


def prefer(
    sampler: Sampler, question: str, texts: Sequence[str], first: Sequence[str], second: Sequence[str]
) -> list[Preference]:
    """Put `question` on each text and two answers to it, twice with the answers' places swapped (arXiv 2306.05685)."""
    prompts: list[Prompt] = []
    for text, one, other in zip(texts, first, second, strict=True):
        for a, b in ((one, other), (other, one)):
            asked = f"{text}\n\nA: {a}\nB: {b}\n\n{question} Answer with A or B."
            prompts.append([{"role": "user", "content": asked}])
    margins = yes_no(sampler, prompts, "A", "B")
    return [
        Preference((straight - swapped) / 2, (straight > 0) == (swapped < 0))
        for straight, swapped in zip(margins[::2], margins[1::2], strict=True)
    ]
