"""Answers that are made together: a step brings all of them forward, and between steps they come and go.

Several tokens in a step cost hardly more than one while reading the weights takes the time, so a server's answers share
steps, whatever their adapters. A prompt is computed beside them, in pieces, so that they need not wait for it.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from openafm.engine.guidance import Guide
from openafm.engine.protocol import Row
from openafm.engine.reading import NativeReading
from openafm.engine.speculation import Proposer
from openafm.model.generation import Choice

if TYPE_CHECKING:
    from openafm.engine.native_engine import NativeEngine
    from openafm.engine.torch_engine import TorchEngine

Computed = tuple[int, list[int], str | None]
"""A sequence in the model's cache, its tokens, of which the first are computed, and their adapter."""
Told = tuple[int, float, list[tuple[int, float]]]
"""What the model says of a choice: the fields of `Choice`."""
TOGETHER = 16
"""Most answers in one step: as many go through the weights at once."""
BESIDE = 32
"""Tokens of a prompt in one step beside answers that are being made."""


@dataclass(eq=False)
class NativeRow:
    """One answer that is being made."""

    adapter: str | None
    sampler: Any
    guide: Guide | None
    proposer: Proposer
    tokens: list[int]
    """The prompt, and what was made."""
    end: int
    """How many `tokens` there may be."""
    sequence: int = -1
    """In the model's cache; -1 until its prompt has its turn."""
    over: bool = False
    error: Exception | None = None


class Together:
    """The answers that a native engine is making, and the texts that it reads."""

    def __init__(self, engine: "NativeEngine"):
        self._engine = engine
        self._rows: list[NativeRow] = []
        self._readings: list[NativeReading] = []
        self._grammars = ThreadPoolExecutor(1, "grammars")
        """Finds what grammars allow while the model computes what is likely."""
        self.room = TOGETHER

    def add(self, prompt: list[int], *, max_tokens: int, adapter: str | None = None, **options: Any) -> NativeRow:
        """Take an answer in; `options` as of `NativeEngine.choices`. Raises ValueError for a bad one."""
        if max_tokens < 1:
            raise ValueError(f"max_tokens {max_tokens}: an answer has at least 1")
        guide, sampler, proposer = self._engine.begin_answer(prompt, adapter, **options)
        row = NativeRow(adapter, sampler, guide, proposer, list(prompt), len(prompt) + max_tokens)
        self._rows.append(row)
        return row

    def read(self, texts: Sequence[list[int]], adapter: str | None = None, told: int | None = None) -> NativeReading:
        """Take in texts to read."""
        self._readings.append(NativeReading(adapter, texts, told))
        return self._readings[-1]

    def remove(self, row: Row) -> None:
        """Let an answer go, whole or not; what was computed stays for prompts that begin like it."""
        if isinstance(row, NativeReading):
            self._readings.remove(row)
            if row.sequence >= 0:
                self._engine.model.release(row.sequence)
            return
        assert isinstance(row, NativeRow)
        self._rows.remove(row)
        row.proposer.close()
        if row.sequence >= 0:
            computed = self._engine.model.length(row.sequence)
            self._engine.keep(row.sequence, row.tokens[:computed], row.adapter)

    def step(self) -> Sequence[tuple[Row, list[Choice]]]:
        """One step of the model; returns the tokens that were made. Of a row that is over, `error` may say why."""
        answered = self._answer()
        reading = next((reading for reading in self._readings if not reading.over), None)
        if reading is None:
            return answered
        try:
            beside = any(not row.over for row in self._rows)
            reading.advance(self._engine, BESIDE if beside else self._engine.most_tokens)
        except Exception as error:  # this reading's own: the answers have their tokens
            reading.over, reading.error = True, error
        return [*answered, (reading, [])]

    def _answer(self) -> list[tuple[NativeRow, list[Choice]]]:
        going = [row for row in self._rows if not row.over]
        ready = [row for row in going if row.sequence >= 0 and len(self._feed(row)) == 1]
        prompting = next((row for row in going if row not in ready), None)
        if prompting is None and len(ready) == 1:
            return self._alone(ready[0])
        rows, feeds = list(ready), [self._feed(row) for row in ready]
        if prompting is not None and (piece := self._piece(prompting, bool(ready))):
            rows.append(prompting)
            feeds.append(piece)
        if not rows:
            return []
        sequences, adapters = [row.sequence for row in rows], [row.adapter for row in rows]
        samplers, masks = [row.sampler for row in ready], self._masks(ready)
        chosen = self._engine.within_memory(
            lambda: self._engine.model.choose(sequences, feeds, adapters, samplers, masks)
        )
        return [(row, []) if row.error else self._made(row, [told]) for row, told in zip(ready, chosen, strict=True)]

    def _feed(self, row: NativeRow) -> list[int]:
        """What of its tokens is not computed yet."""
        return row.tokens[self._engine.model.length(row.sequence) :]

    def _piece(self, row: NativeRow, beside: bool) -> list[int]:
        """The next part of a prompt, without its last token: the first choice is made after that."""
        if row.sequence < 0:
            others = [(other.sequence, other.tokens, other.adapter) for other in self._rows if other.sequence >= 0]
            row.sequence = self._engine.begin(row.tokens, row.adapter, others)
        most = BESIDE if beside else self._engine.most_tokens
        return self._feed(row)[:-1][:most]

    def _masks(self, rows: list[NativeRow]) -> Callable[[], NDArray[np.uint32]] | None:
        """Begin to find what each row may say next, where any of them is guided; the function waits for it."""
        found = {i: self._grammars.submit(row.guide.masks, []) for i, row in enumerate(rows) if row.guide}

        def masks() -> NDArray[np.uint32]:
            bits = np.full((len(rows), -(-self._engine.config.vocab_size // 32)), 0xFFFFFFFF, np.uint32)
            for i, mask in found.items():
                try:
                    bits[i] = mask.result()[0]
                except ValueError as error:  # this answer's own; the others go on
                    rows[i].over, rows[i].error = True, error
            return bits

        return masks if found else None

    def _alone(self, row: NativeRow) -> list[tuple[NativeRow, list[Choice]]]:
        """A step of one answer has room for tokens that are only guessed."""
        left = row.end - len(row.tokens)
        guessed = row.proposer.propose(row.tokens, min(left - 1, self._engine.max_length - len(row.tokens)))
        feed = self._feed(row)
        masks: Callable[[], NDArray[np.uint32]] | None = None
        try:
            if row.guide and guessed.tokens:
                guessed.cut(row.guide.allowed(guessed.tokens))
            if row.guide:
                masks = self._grammars.submit(row.guide.masks, guessed.tokens).result
            chosen = self._engine.within_memory(
                lambda: self._engine.model.take(row.sequence, feed, row.adapter, row.sampler, guessed, masks)
            )
        except ValueError as error:
            row.over, row.error = True, error
            return [(row, [])]
        return [self._made(row, chosen)]

    def _made(self, row: NativeRow, chosen: list[Told]) -> tuple[NativeRow, list[Choice]]:
        """Put down what a step chose, up to the token that ends the answer."""
        made = []
        for choice in map(Choice._make, chosen):
            made.append(choice)
            row.tokens.append(choice.token)
            row.over = choice.token in self._engine.stop or len(row.tokens) >= row.end
            if row.over:
                break
        if row.guide and not row.over:
            row.guide.take([choice.token for choice in made])
        return row, made


@dataclass(eq=False)
class StreamedRow:
    """The answer of an engine that makes one at a time."""

    choices: Iterator[Choice]
    over: bool = False
    error: Exception | None = None


@dataclass(eq=False)
class StreamedReading:
    """Texts that such an engine reads, one a step."""

    coming: Iterator[Any]
    results: list[Any] = field(default_factory=list)
    over: bool = False
    error: Exception | None = None


class OneByOne:
    """The same for an engine that makes one answer at a time."""

    room = 1

    def __init__(self, engine: "TorchEngine"):
        self._engine = engine
        self._row: StreamedRow | StreamedReading | None = None

    def add(self, prompt: list[int], **options: Any) -> StreamedRow:
        """Take an answer in; there must be none. `options` as of `Engine.choices`."""
        assert self._row is None
        self._row = row = StreamedRow(self._engine.choices(prompt, **options))
        return row

    def read(self, texts: Sequence[list[int]], adapter: str | None = None, told: int | None = None) -> StreamedReading:
        """Take in texts to read; there must be no answer."""
        assert self._row is None
        self._row = row = StreamedReading(self._engine.read(text, adapter, told) for text in texts)
        return row

    def remove(self, row: Row) -> None:
        """Let the answer go."""
        assert row is self._row
        self._row = None

    def step(self) -> Sequence[tuple[Row, list[Choice]]]:
        """The answer's next token, or the next text."""
        row = self._row
        if row is None or row.over:
            return []
        if isinstance(row, StreamedReading):
            result = next(row.coming, None)
            row.over = result is None
            row.results += [] if result is None else [result]
            return [(row, [])]
        choice = next(row.choices, None)
        row.over = choice is None
        return [(row, [] if choice is None else [choice])]
