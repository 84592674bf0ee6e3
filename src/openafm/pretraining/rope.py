"""The RoPE base for longer sequences."""

import math


def rebase(base: float, old_length: int, new_length: int) -> float:
    """base^(ln(T_new / 2 pi) / ln(T_old / 2 pi)) (arXiv 2310.05209, "Scaling laws of RoPE-based extrapolation").

    It gives AFM's constant: 500,000 from 8,192 to 32,768 tokens is 6,315,089. Raises ValueError where the new length
    is not longer.
    """
    if new_length <= old_length:
        raise ValueError(f"context lengthening goes up: {new_length} tokens is not more than {old_length}")
    turn = 2 * math.pi
    return math.pow(base, math.log(new_length / turn) / math.log(old_length / turn))
