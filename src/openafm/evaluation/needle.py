"""Needle retrieval by depth: does a model find a fact said far back? (stage `evaluate`, after context lengthening).

Facts of one form (`openafm.synthesis.long_qa`) are hidden in held-out text, the one asked for at a given depth, the
others spread evenly. The model ranks the codes of all of them as the answer's continuation, so that it must tell the
facts apart, and one guess in four is right: a small model that cannot spell a code yet can be seen to attend to it.
"""

import random

import numpy as np
import torch
from torch import Tensor

from openafm.evaluation.intervals import Estimate, rate
from openafm.evaluation.options import option_log_probs
from openafm.model import Transformer
from openafm.synthesis.long_qa import draw_facts, place
from openafm.tokenizer import Tokenizer
from openafm.training.losses import IGNORED

FACTS = 4


def retrieval(
    model: Transformer,
    tokenizer: Tokenizer,
    haystack: np.ndarray,
    *,
    length: int,
    depths: tuple[float, ...],
    questions: int,
    seed: int,
) -> dict[float, Estimate]:
    """Share of codes ranked first at each depth (0 the start of the text, 1 its end), `questions` at each.

    Raises ValueError when `length` tokens hold no text between the facts, or `haystack` holds fewer than that.
    """
    found = {}
    for depth in depths:
        right = answered(model, tokenizer, haystack, length=length, depth=depth, questions=questions, seed=seed)
        found[depth] = rate(sum(right), questions)
    return found


def answered(
    model: Transformer,
    tokenizer: Tokenizer,
    haystack: np.ndarray,
    *,
    length: int,
    depth: float,
    questions: int,
    seed: int,
) -> list[bool]:
    """Whether the code is ranked first, of each question at one depth. Raises ValueError as `retrieval` does."""
    rng = random.Random(f"{seed}/needle/{depth}")
    asked = [_question(tokenizer, haystack, length, depth, rng) for _ in range(questions)]
    return [int(_scores(model, prompt, options).argmax()) == 0 for prompt, options in asked]


def _question(
    tokenizer: Tokenizer, haystack: np.ndarray, length: int, depth: float, rng: random.Random
) -> tuple[list[int], list[list[int]]]:
    """A prompt and the codes that may continue it, the true one first; together they have at most `length` tokens."""
    facts = draw_facts(FACTS, rng)
    at = rng.randrange(max(1, len(haystack) - length))
    others = [(i + 0.5) / (FACTS - 1) for i in range(FACTS - 1)]
    placed = list(zip(facts, [depth, *others], strict=True))
    sample = place(haystack[at : at + length].tolist(), placed, [0], length, tokenizer)
    ending = tokenizer.encode(f" {facts[0].code}.")
    prompt = sample.tokens[: -len(ending) - 1]  # the end mark comes last
    return prompt, [tokenizer.encode(f" {fact.code}") for fact in facts]


def _scores(model: Transformer, prompt: list[int], options: list[list[int]]) -> Tensor:
    """log p(option | prompt), `(options,)`."""
    longest = max(map(len, options))
    filled = torch.tensor([option + [IGNORED] * (longest - len(option)) for option in options])
    return option_log_probs(model, torch.tensor([prompt]), filled[None])[0]
