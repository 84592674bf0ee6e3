"""Learning-rate schedules: a factor in [0, 1] as a function of tokens seen, never of seconds or steps."""

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def cosine(total_tokens: int, warmup_tokens: int, floor: float) -> Schedule:
    """Linear warm-up to 1 over `warmup_tokens`, then a cosine down to `floor` at `total_tokens` (arXiv 2407.21075)."""

    def scale(tokens: int) -> float:
        """The factor on the learning rate after so many tokens."""
        if tokens < warmup_tokens:
            return tokens / warmup_tokens
        progress = min(1.0, (tokens - warmup_tokens) / max(1, total_tokens - warmup_tokens))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return scale


def constant(warmup_tokens: int = 0) -> Schedule:
    """1 throughout, after an optional linear warm-up."""
    return lambda tokens: min(1.0, tokens / warmup_tokens) if warmup_tokens else 1.0
