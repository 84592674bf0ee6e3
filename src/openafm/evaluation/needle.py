"""Needle retrieval by depth: does a model find a fact said far back? (stage `evaluate`, after context lengthening).

A sentence with a random code is put into held-out text; at the end the same sentence begins again, and the model ranks
the true code against the codes of three other sentences nobody said. A guess is right one time in four: a small model
that cannot spell the code out yet can still be seen to attend to it.
"""

import random

import numpy as np

from openafm.evaluation.intervals import Estimate, rate
from openafm.model import Transformer
from openafm.sampling.sampler import continuation_logprobs
from openafm.tokenizer import Tokenizer

COLOURS = ("red", "green", "blue", "white", "black", "brown", "yellow", "grey")
OPTIONS = 4


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
    """Share of codes ranked first at each depth (0 the start, 1 just before the question), `questions` at each."""
    found = {}
    for depth in depths:
        rng = random.Random(f"{seed}/needle/{depth}")
        asked = [_question(tokenizer, haystack, length, depth, rng) for _ in range(questions)]
        pairs = [(prompt, option) for prompt, options in asked for option in options]
        scores = np.array(continuation_logprobs(model, pairs, batch=8)).reshape(questions, OPTIONS)
        found[depth] = rate(int((scores.argmax(1) == 0).sum()), questions)
    return found


def _question(
    tokenizer: Tokenizer, haystack: np.ndarray, length: int, depth: float, rng: random.Random
) -> tuple[list[int], list[list[int]]]:
    """A prompt of at most `length` tokens, code included, and the codes, the true one first."""
    colour = rng.choice(COLOURS)
    codes = [" " + code for code in rng.sample([f"{n:03d}" for n in range(1000)], OPTIONS)]
    start = f"The code of the {colour} door is"
    needle = tokenizer.encode(f"\n{start}{codes[0]}.\n")
    ending = tokenizer.encode(f"\n{start}")
    options = [tokenizer.encode(code) for code in codes]
    room = length - len(needle) - len(ending) - max(map(len, options))
    if room < 1:
        raise ValueError(f"long_length {length} is too short for the question alone: give {length - room + 1} or more")
    at = rng.randrange(max(1, len(haystack) - room))
    hay = haystack[at : at + room].tolist()
    cut = round(depth * len(hay))
    return hay[:cut] + needle + hay[cut:] + ending, options
