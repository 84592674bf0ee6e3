"""What every decoder answers with."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Choice(NamedTuple):
    """One token that was chosen, and what the model thought of it: before penalties, masks, temperature and cuts."""

    token: int
    logprob: float | None = None
    """Natural log of its probability; None where nobody asked and it is not at hand."""
    likeliest: Sequence[tuple[int, float]] = ()
    """The likeliest tokens here with theirs, as many as were asked for, the likeliest first."""


@dataclass
class Generation:
    """One answer: its tokens (without the stop token), their log-probabilities, and whether it ended by itself."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """Natural log of each token's probability under the untempered model; one more than `tokens` when `finished`:
    the last one is the stop token's."""
    stop: int | None = None
    """The stop token that ended the answer, or None where `max_tokens` did."""

    @property
    def finished(self) -> bool:
        """Whether the model ended the answer itself."""
        return self.stop is not None
