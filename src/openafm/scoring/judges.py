"""A language model as judge: how much more it would say yes than no, read from its log-probabilities (no sampling)."""

from collections.abc import Sequence

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
