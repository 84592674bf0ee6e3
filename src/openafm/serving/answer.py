"""One answer as it is made: tokens to whole characters, cut at the first stop string.

The terminal chat shows its pieces, the server sends them.
"""

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from openafm.engine import Engine
from openafm.sampling.sampler import stop_tokens
from openafm.tokenizer import Tokenizer

UNFINISHED = 3
"""Bytes of UTF-8 that may still become a character, and so the most U+FFFD that may still change."""


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
    """An engine's answer to one prompt: iterate once for its text, a piece a token, empty while it is held back."""

    def __init__(
        self,
        engine: Engine,
        prompt: list[int],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        adapter: str | None = None,
        stop: Sequence[str] = (),
        until: float = math.inf,
        grammar: str | None = None,
    ):
        """Prepare the answer; nothing is computed yet. `until` is the `time.monotonic()` that ends it."""
        self._engine, self._prompt, self._until = engine, prompt, until
        self._options: dict[str, Any] = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
            "adapter": adapter,
            "grammar": grammar,
        }
        self._stop = stop
        self.prompt_tokens = len(prompt)
        self.tokens = 0
        """How many were generated so far, the stop token included."""
        self.finish: Literal["stop", "length"] = "length"
        """"stop" once the model or a stop string ended the answer; else it is cut by `max_tokens` or `until`."""

    def __iter__(self) -> Iterator[str]:
        """Generate. Raises TimeoutError where the time was over before it began."""
        if time.monotonic() > self._until:
            raise TimeoutError("the request's time was over before its turn came")
        ends = stop_tokens(self._engine.tokenizer)
        characters, strings = Characters(self._engine.tokenizer), StopStrings(self._stop)
        for token in self._engine.generate(self._prompt, **self._options):
            self.tokens += 1
            text = strings.push(characters.push(token))
            if strings.met or token in ends:
                self.finish = "stop"
            yield text
            if self.finish == "stop" or time.monotonic() > self._until:
                break
        if not strings.met:
            text = strings.push(characters.rest())
            if strings.met:
                self.finish = "stop"
            yield text + strings.rest()
