"""What a decoder offers; the native engine and the torch engine fill it."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from openafm.model.generation import Generation
from openafm.tokenizer import Tokenizer


class Engine(Protocol):
    """A loaded model with its tokenizer and adapters; each request names the adapter it wants, or none."""

    tokenizer: Tokenizer
    max_length: int
    """Longest sequence in tokens, prompt and answer together."""
    guided: bool
    """Whether answers can keep to a grammar."""

    def generate(
        self,
        prompt: list[int],
        *,
        max_tokens: int,
        temperature: float = 1.0,
        seed: int = 0,
        adapter: str | None = None,
        grammar: str | None = None,
    ) -> Iterator[int]:
        """Yield the answer's tokens one by one; the stop token, where the model ends by itself, comes last.

        The answer keeps to the `grammar` (openafm.engine.guidance); ValueError where the engine cannot be guided.
        """
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
