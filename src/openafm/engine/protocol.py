"""What a decoder offers; the native engine and the torch engine fill it."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from openafm.adapters.store import AdapterStore
from openafm.model.generation import Choice, Generation
from openafm.tokenizer import Tokenizer

CUTS = ("top_k", "top_p", "min_p")
PENALTIES = ("presence_penalty", "frequency_penalty", "repetition_penalty")
"""With `CUTS`, what a sampler takes beside temperature and seed."""
TOP_LOGPROBS = "top_logprobs"
"""Option: log-probabilities are told, and those of so many of the likeliest tokens beside each."""


class Row(Protocol):
    """An answer, or a reading, in a batch."""

    over: bool
    """It has ended: by its stop token, by its length or by an error."""
    error: Exception | None


class Reading(Row, Protocol):
    """Texts in a batch that are read, not answered."""

    results: list[Any]
    """Of the texts that are read so far: a vector, the mean of the last hidden states without the token that begins a
    text; or, where log-probabilities are told, a `Choice` for each token after that."""


class Batch(Protocol):
    """Answers that are made together, and texts that are read beside them; they come and go between steps."""

    room: int
    """How many there may be."""

    def add(self, prompt: list[int], *, max_tokens: int, **options: Any) -> Row:
        """Take an answer in; `options` as of `Engine.generate`. Raises ValueError for a bad one."""
        ...

    def read(self, texts: Sequence[list[int]], adapter: str | None = None, told: int | None = None) -> Reading:
        """Take in texts, each of two tokens or more; together they have the place of one answer.

        With `told`, log-probabilities are wanted, and those of so many alternatives.
        """
        ...

    def step(self) -> Sequence[tuple[Row, list[Choice]]]:
        """Bring the answers forward; returns the tokens that were made."""
        ...

    def remove(self, row: Row) -> None:
        """Let an answer go, whole or not."""
        ...


class Engine(Protocol):
    """A loaded model with its tokenizer and adapters; each request names the adapter it wants, or none."""

    tokenizer: Tokenizer
    max_length: int
    """Longest sequence in tokens, prompt and answer together."""
    options: frozenset[str]
    """What else answers may ask for: `top_logprobs`, `grammar`, and the sampler's cuts and penalties."""

    def generate(self, prompt: list[int], *, max_tokens: int, **options: Any) -> Iterator[int]:
        """Yield the tokens of `choices`."""
        ...

    def choices(
        self,
        prompt: list[int],
        *,
        max_tokens: int,
        temperature: float = 1.0,
        seed: int = 0,
        adapter: str | None = None,
        **options: Any,
    ) -> Iterator[Choice]:
        """Yield the answer one token at a time; the stop token, where the model ends by itself, comes last.

        The answer keeps to a `grammar` (openafm.engine.guidance). Raises ValueError for options it does not take.
        """
        ...

    def together(self) -> "Batch":
        """Answers that are made together; there may be one such batch at a time."""
        ...

    def batch(
        self,
        prompts: Sequence[list[int]],
        *,
        max_tokens: int,
        temperature: float = 1.0,
        seed: int = 0,
        adapter: str | None = None,
    ) -> list[Generation]:
        """Answer many prompts together, with log-probabilities."""
        ...

    def adapters(self) -> list[str]:
        """Names that `adapter` may take."""
        ...

    def read_adapter(self, store: AdapterStore, name: str) -> Any:
        """Read an adapter for `put_adapter`; slow, and in any thread. Raises ValueError where it is damaged."""
        ...

    def put_adapter(self, name: str, read: Any) -> None:
        """Take in what was read, in place of an older one of that name; between steps. Raises ValueError if it does
        not fit."""
        ...

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter that no answer uses; between steps."""
        ...
