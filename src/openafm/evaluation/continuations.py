"""Which continuation is the text's own? A multiple-choice task that a model of a million weights can learn.

A piece of held-out text is to be told from three pieces of the same length that stand near it: same topic, same words,
another place. The model ranks them by their log-probability after the context, as HellaSwag (arXiv 1905.07830) is
scored; one guess in four is right. Questions lie evenly over each flow's held-out text, the same ones for every model.
"""

import random

import numpy as np
import torch
from torch import Tensor

from openafm.evaluation.intervals import Estimate, rate
from openafm.evaluation.options import option_log_probs
from openafm.model import Transformer

CONTEXT, ANSWER, CHOICES = 64, 16, 4
"""Tokens of the context and of each piece; pieces to choose from."""
NEAR = 1024
"""How far from the true piece, in tokens, the others begin at most."""


def questions(tokens: np.ndarray, count: int, seed: int) -> Tensor:
    """Up to `count` questions `(questions, CHOICES, CONTEXT + ANSWER)`, the true piece first; fewer in a short text."""
    rng = random.Random(f"{seed}/continuations")
    first, last = CONTEXT, len(tokens) - ANSWER
    starts = np.linspace(first, last, min(count, max(0, (last - first) // ANSWER))).astype(int)
    asked = []
    for at in starts.tolist():
        near = range(max(0, at - NEAR), min(last, at + NEAR) + 1)
        others = [place for place in near if place + ANSWER <= at - CONTEXT or place >= at + ANSWER]
        if len(others) < CHOICES - 1:
            continue
        places = [at, *rng.sample(others, CHOICES - 1)]
        asked.append([np.concatenate([tokens[at - CONTEXT : at], tokens[i : i + ANSWER]]) for i in places])
    return torch.from_numpy(np.array(asked, dtype=np.int64).reshape(-1, CHOICES, CONTEXT + ANSWER))


def accuracy(model: Transformer, asked: Tensor, together: int = 64) -> Estimate:
    """Share of `asked` where the true piece is the likeliest."""
    right = 0
    for part in asked.split(together):
        scores = option_log_probs(model, part[:, 0, :CONTEXT], part[:, :, CONTEXT:])
        right += int((scores.argmax(1) == 0).sum())
    return rate(right, len(asked))
