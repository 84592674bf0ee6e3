"""Texts that a request has read without an answer: for their vectors, or for how likely they are."""

import time
from typing import Any

from openafm.engine.protocol import Batch
from openafm.engine.protocol import Reading as ReadingRow
from openafm.model.generation import Choice
from openafm.serving.answer import Piece


class Reading:
    """Texts to read, as a job of the worker."""

    tokens = 0
    """Made: none."""
    over = False

    def __init__(self, texts: list[list[int]], adapter: str | None, until: float, told: int | None = None):
        """Each text begins with the token that begins a text; `until` is the `time.monotonic()` that ends it.

        With `told`, the results are log-probabilities, with so many alternatives; else vectors.
        """
        self._texts, self.adapter, self._until, self._told = texts, adapter, until, told
        self.prompt = [token for text in texts for token in text]
        self._row: ReadingRow | None = None

    @property
    def late(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() > self._until

    def begin(self, batch: Batch) -> ReadingRow:
        """Join an engine's batch."""
        self._row = batch.read(self._texts, self.adapter, self._told)
        return self._row

    def push(self, choice: Choice) -> Piece:
        """No token comes."""
        raise AssertionError(choice)

    def rest(self) -> str:
        """Nothing is said."""
        return ""

    def results(self) -> list[Any]:
        """One a text. Raises TimeoutError where time has not sufficed."""
        found = self._row.results if self._row else []
        if len(found) < len(self._texts):
            raise TimeoutError(f"the request's time was over after {len(found)} of {len(self._texts)} texts")
        return found
