"""One answer as it is made: tokens to whole characters, cut at the first stop string.

The terminal chat shows its pieces, the server sends them.
"""

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from openafm.engine import Engine
from openafm.engine.protocol import Batch, Row
from openafm.model.generation import Choice
from openafm.sampling.sampler import stop_tokens
from openafm.tokenizer import Tokenizer

UNFINISHED = 3
"""Bytes of UTF-8 that may still become a character, and so the most U+FFFD that may still change."""


class Piece(NamedTuple):
    """What one token adds to an answer."""

    text: str
    """Often empty: what may still change is held back, and comes with a later one."""
    choice: Choice | None = None
    """The token; None where what was held back comes last."""


class Characters:
    """Turns tokens into text as they come; a character whose bytes are not all here yet waits for the rest."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        """What is decoded together: the last tokens that ended with a character, as context, and those since."""
        self._context = 0
        """How many of them are context."""
        self._told = 0
        """How many characters of their text have been told."""

    def push(self, token: int) -> str:
        """Return the text that this token completes."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        broken = len(text) - len(text.rstrip("\ufffd"))
        text = text[: len(text) - min(broken, UNFINISHED)]
        new, self._told = text[self._told :], max(self._told, len(text))
        if new and not broken:
            self._tokens = self._tokens[self._context :]
            self._context = len(self._tokens)
            self._told = len(self._tokenizer.decode(self._tokens))
        return new

    def rest(self) -> str:
        """Return what is still untold when no token follows: U+FFFD for broken UTF-8."""
        return self._tokenizer.decode(self._tokens)[self._told :]


class StopStrings:
    """Passes text on until a stop string is complete; what may be the beginning of one is held back."""

    def __init__(self, strings: Sequence[str]):
        self._strings = strings
        self._longest = max(map(len, strings), default=1)
        self._held = ""
        self.met = False
        """A stop string was complete; it and what follows are not passed on."""

    def push(self, text: str) -> str:
        """Return what of the text so far can be shown, up to the stop string that is complete first."""
        assert not self.met
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._strings if (start := text.find(stop)) >= 0]
        if found:
            self.met, self._held = True, ""
            return text[: min(found)[1]]
        hold = next((n for n in range(min(self._longest - 1, len(text)), 0, -1) if self._begins(text[-n:])), 0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def rest(self) -> str:
        """Return what is held back when no text follows."""
        held, self._held = self._held, ""
        return held

    def _begins(self, tail: str) -> bool:
        return any(stop.startswith(tail) for stop in self._strings)


class Answer:
    """The answer to one prompt: tokens go in as they are made, text comes out, held back while it may still change."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: list[int],
        *,
        adapter: str | None = None,
        stop: Sequence[str] = (),
        until: float = math.inf,
        **options: Any,
    ):
        """Prepare the answer. `options` are the engine's; `until` is the `time.monotonic()` that ends it."""
        self.prompt, self.adapter, self.options = prompt, adapter, {"adapter": adapter, **options}
        self._characters, self._strings = Characters(tokenizer), StopStrings(stop)
        self._ends, self._until = stop_tokens(tokenizer), until
        self.tokens = 0
        """How many were generated so far, the stop token included."""
        self.finish: Literal["stop", "length"] = "length"
        """"stop" once the model or a stop string ended the answer; else it is cut by `max_tokens` or `until`."""

    def begin(self, batch: Batch) -> Row:
        """Join an engine's batch."""
        return batch.add(self.prompt, **self.options)

    @property
    def late(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() > self._until

    @property
    def over(self) -> bool:
        """Whether no further token is wanted."""
        return self.finish == "stop" or self.late

    def push(self, choice: Choice) -> Piece:
        """Take in a token; returns the text that it completes."""
        self.tokens += 1
        text = self._strings.push(self._characters.push(choice.token))
        if self._strings.met or choice.token in self._ends:
            self.finish = "stop"
        return Piece(text, choice)

    def rest(self) -> str:
        """Return what is still held back when no token follows."""
        if self._strings.met:
            return ""
        text = self._strings.push(self._characters.rest())
        if self._strings.met:
            self.finish = "stop"
        return text + self._strings.rest()

    def by(self, engine: Engine) -> Iterator[str]:
        """Let an engine make it; yields its text, a piece a token."""
        for choice in engine.choices(self.prompt, **self.options):
            yield self.push(choice).text
            if self.over:
                break
        yield self.rest()
