"""A fastText classifier of mathematical text, learned from what a run has at hand (used by the `extract` step).

AFM filters math pages by a quality model (arXiv 2407.21075, section 3.1.1). **Seed labels**, since nobody labelled
pages for it: good are the documents of the `math` flow, which the sources name as mathematics (problems with solutions,
manuals of algebra systems); poor are web pages that fail the symbol filter, and good ones whose words were shuffled, so
that symbols alone do not make a page good. It learns "reads like the math flow", no more, and its test on held-out
seeds says how well it tells these apart, not how good a page is.
"""

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fasttext

MIN_SEEDS = 40
"""With fewer seeds of either kind nothing is learned, and no page is dropped for its quality."""
MAX_SEEDS = 4_000
_WORDS = 300
_TOKEN = re.compile(r"\\[a-zA-Z]+|\w+|[^\w\s]")
_DIGIT = re.compile(r"\d+")


def features(text: str) -> str:
    """Return one line of a text's first words and signs, LaTeX commands whole and numbers as 0: what fastText reads."""
    return " ".join(_TOKEN.findall(_DIGIT.sub("0", text[: 40 * _WORDS]).casefold())[:_WORDS])


def _shuffled(line: str, draw: random.Random) -> str:
    words = line.split()
    draw.shuffle(words)
    return " ".join(words)


def _train(lines: Sequence[tuple[str, bool]], scratch: Path) -> Any:
    path = scratch / "math_quality.txt"
    path.write_text("".join(f"__label__{'good' if good else 'poor'} {line}\n" for line, good in lines))
    return fasttext.train_supervised(
        str(path), dim=16, wordNgrams=3, bucket=2**16, epoch=15, lr=0.4, thread=1, verbose=0
    )


class MathQuality:
    """The classifier; `accuracy` is that on a fifth of the seeds, which it did not learn from, `seeds` their number."""

    def __init__(self, good: Sequence[str], poor: Sequence[str], scratch: Path, seed: int) -> None:
        draw = random.Random(f"{seed}/math_quality")
        chosen = [features(text) for text in draw.sample(list(good), min(len(good), MAX_SEEDS))]
        others = [features(text) for text in draw.sample(list(poor), min(len(poor), MAX_SEEDS))]
        seeds = [(line, True) for line in chosen] + [(line, False) for line in others]
        seeds += [(_shuffled(line, draw), False) for line in chosen[::2]]
        draw.shuffle(seeds)
        held_out = seeds[::5]
        self.seeds = len(seeds)
        self._model = _train([line for at, line in enumerate(seeds) if at % 5], scratch)
        right = sum((self._score(line) >= 0.5) == good for line, good in held_out)
        self.accuracy = round(right / len(held_out), 4)

    def _score(self, line: str) -> float:
        labels, chances = self._model.predict(line, k=2)
        return min(1.0, float(dict(zip(labels, chances, strict=True)).get("__label__good", 0.0)))

    def score(self, text: str) -> float:
        """Return the probability that a text reads like good mathematics."""
        return round(self._score(features(text)), 6)
