"""Texts that an engine reads without answering: their vectors, or how likely each of their tokens is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from openafm.model.generation import Choice

if TYPE_CHECKING:
    from openafm.engine.native_engine import NativeEngine

SCORED = 32
"""Tokens whose logits are computed at once: they take a vocabulary's room each."""


@dataclass(eq=False)
class NativeReading:
    """Texts in the native engine's batch."""

    adapter: str | None
    texts: Sequence[list[int]]
    told: int | None = None
    """How many alternatives each token is told with; None: vectors are wanted."""
    results: list[Any] = field(default_factory=list)
    over: bool = False
    error: Exception | None = None
    sequence: int = -1
    """Of the text that is begun, in the model's cache."""
    parts: list[Any] = field(default_factory=list)
    """Of its result."""

    def advance(self, engine: "NativeEngine", most: int) -> None:
        """Read up to so many tokens further."""
        model = engine.model
        if self.sequence < 0:
            self.sequence = model.create()
        text, read = self.texts[len(self.results)], model.length(self.sequence)
        piece = text[read : read + (most if self.told is None else min(most, SCORED))]
        asked = [self.sequence], [piece], [self.adapter]
        if self.told is None:
            states = engine.within_memory(lambda: model.hidden(*asked))
            self.parts.append(states[0 if read else 1 :].sum(0, dtype=np.float64))
        else:
            logits = engine.within_memory(lambda: model.logits(*asked, every=True))
            self.parts += _scores(logits, text[read + 1 : read + 1 + len(piece)], self.told)
        if read + len(piece) == len(text):
            self._finish(engine, len(text) - 1)

    def _finish(self, engine: "NativeEngine", count: int) -> None:
        vector = self.told is None
        self.results.append((np.sum(self.parts, 0) / count).astype(np.float32) if vector else self.parts)
        engine.model.release(self.sequence)
        self.sequence, self.parts = -1, []
        self.over = len(self.results) == len(self.texts)


def _scores(logits: NDArray[np.float32], tokens: list[int], most: int) -> Iterator[Choice]:
    """What the model thought of the tokens that follow."""
    for row, token in zip(logits, tokens, strict=False):
        highest = float(row.max())
        logprobs = row - (highest + float(np.log(np.exp(row - highest, dtype=np.float64).sum())))
        best = np.argpartition(-logprobs, most)[:most] if most < len(row) else np.arange(len(row))
        best = best[np.argsort(-logprobs[best], kind="stable")]
        yield Choice(token, float(logprobs[token]), [(int(i), float(logprobs[i])) for i in best])
