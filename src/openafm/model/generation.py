"""What every decoder answers with."""

from dataclasses import dataclass, field


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
