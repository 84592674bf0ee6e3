"""Speculative decoding: who proposes the tokens that the native engine checks, several in one step.

What comes out is what plain decoding gives: greedy answers are the same, drawn ones have the same distribution
(Leviathan et al. 2023, arXiv 2211.17192; the rule is in native/sampling.cpp).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from openafm.engine._native import Proposal
    from openafm.engine.native_engine import NativeEngine

LOOK_UP = "lookup"
"""Name of prompt look-up where a draft model's folder may be named."""
MOST = 7
"""Most tokens of a proposal: with the one before them they go through the weights together."""
LONGEST, SHORTEST = 3, 2
"""Tokens that must stand there already for look-up to propose what followed them."""


class Proposer(Protocol):
    """Guesses how one answer goes on."""

    def propose(self, tokens: list[int], most: int) -> "Proposal":
        """Up to `most` tokens that may follow all `tokens` so far; none where it has no guess."""
        ...

    def close(self) -> None:
        """The answer is over."""
        ...


class LookUp:
    """Proposes what followed the last few tokens where they stood before, in the prompt or the answer (Saxena 2023)."""

    def __init__(self) -> None:
        self._follows: dict[tuple[int, ...], int] = {}
        """Where the token that followed an n-gram stands, the last time."""
        self._read = 0

    def propose(self, tokens: list[int], most: int) -> "Proposal":
        """As `Proposer` has it; the longest n-gram that is found counts."""
        for place in range(self._read, len(tokens)):
            for n in range(SHORTEST, min(LONGEST, place) + 1):
                self._follows[tuple(tokens[place - n : place])] = place
        self._read = len(tokens)
        most = max(0, min(most, MOST))
        for n in range(LONGEST, SHORTEST - 1, -1):
            if (found := self._follows.get(tuple(tokens[-n:]))) is not None:
                return proposal(tokens[found : found + most])
        return proposal([])

    def close(self) -> None:
        """Nothing to do."""


class Draft:
    """A smaller model with the same tokenizer proposes; how many tokens follows how many were taken."""

    def __init__(self, engine: "NativeEngine", prompt: list[int], sampling: Mapping[str, Any]):
        """Begin with the prompt. `sampling` as in the answer, without penalties, and with a seed of its own."""
        from openafm.engine._native import Sampler

        self._engine, self._sampler, self._count = engine, Sampler(**sampling), 4
        self._sequence = engine.begin(prompt, None)
        self._computed = prompt[: engine.model.length(self._sequence)]
        self._proposed = 0

    def propose(self, tokens: list[int], most: int) -> "Proposal":
        """As `Proposer` has it."""
        same = common(self._computed, tokens[:-1])
        if self._proposed:
            taken = same >= len(self._computed)
            self._count = min(self._count + 2, MOST) if taken else max(self._count - 1, 1)
        self._proposed = 0
        if most <= 0 or len(tokens) >= self._engine.max_length:
            return proposal([])
        model = self._engine.model
        model.truncate(self._sequence, same)
        feed = self._engine.prefill(self._sequence, tokens[same:], None)
        found = model.draft(self._sequence, feed, None, self._sampler, min(most, self._count))
        self._proposed = len(found.tokens)
        self._computed = (tokens + found.tokens)[: model.length(self._sequence)]
        return found

    def close(self) -> None:
        """Keep what was computed for the next prompt."""
        self._engine.keep(self._sequence, self._computed, None)


class Plain:
    """Proposes nothing: plain decoding."""

    def propose(self, tokens: list[int], most: int) -> "Proposal":
        """As `Proposer` has it."""
        return proposal([])

    def close(self) -> None:
        """Nothing to do."""


def proposal(tokens: list[int]) -> "Proposal":
    """Tokens that are proposed without a doubt."""
    from openafm.engine._native import Proposal

    return Proposal(tokens)


def common(a: list[int], b: list[int]) -> int:
    """How many tokens two texts begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


PROBE = 'The quick brown fox, 12,345 {"a": [1.5, true]}\n\tdéjà vu über 日本語 🙂'


def fits(target: "NativeEngine", draft: "NativeEngine") -> None:
    """Raise ValueError unless both models read and write the same tokens."""
    mine, other = target.tokenizer, draft.tokenizer
    same = (mine.vocab_size, mine.eos_id, mine.end_of_turn_id) == (other.vocab_size, other.eos_id, other.end_of_turn_id)
    if not same or target.config.vocab_size != draft.config.vocab_size or mine.encode(PROBE) != other.encode(PROBE):
        raise ValueError("the draft model has another tokenizer: give a smaller model made with the same one")
