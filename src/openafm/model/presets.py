"""Named shapes, from a laptop's nano to AFM's own, and the dial `size`."""

import math
from dataclasses import dataclass

from openafm.model.config import ModelConfig

_NANO = ModelConfig(
    vocab_size=2048,
    d_model=128,
    n_layers=4,
    n_heads=4,
    n_kv_heads=2,
    head_dim=32,
    d_ff=384,
    rope_base=500.0,
    max_length=1024,
)
_AFM = ModelConfig(
    vocab_size=49_152, d_model=3072, n_layers=26, n_heads=24, n_kv_heads=8, head_dim=128, d_ff=8064, max_length=32_768
)

PRESETS: dict[str, ModelConfig] = {
    "nano": _NANO,
    "nano-teacher": _NANO.model_copy(update={"d_ff": 1536}),
    "proxy": ModelConfig(vocab_size=49_152, d_model=768, n_layers=12, n_heads=12, n_kv_heads=6, head_dim=64, d_ff=2304),
    "afm-on-device": _AFM,
    "afm-teacher": _AFM.model_copy(update={"d_ff": 23_296}),
    "afm-server": ModelConfig(
        vocab_size=100_352, d_model=6144, n_layers=48, n_heads=48, n_kv_heads=8, head_dim=128, d_ff=16_384,
        max_length=32_768,
    ),
}  # fmt: skip
"""`proxy` is the shape of AFM's learning-rate sweeps; the teacher's FFN width is our choice (6.39B in all). The report
gives no size of AFM-server, only its vocabulary of 100k: the shape here is ours (19.3B)."""


@dataclass(frozen=True)
class Size:
    """One setting of the dial: the width decides heads, FFN and batch, the depth grows with it."""

    d_model: int
    n_layers: int
    head_dim: int

    @property
    def n_heads(self) -> int:
        """Query heads; half as many key heads, as in AFM's proxy."""
        return self.d_model // self.head_dim

    @property
    def d_ff(self) -> int:
        """Three widths, as in AFM's proxy."""
        return 3 * self.d_model

    @property
    def projections(self) -> int:
        """Weights of the linear layers, which do the work."""
        return self.n_layers * (3 * self.d_model**2 + 3 * self.d_model * self.d_ff)

    @property
    def tokens(self) -> int:
        """20 a weight (arXiv 2203.15556, table 3), rounded to a million."""
        return round(20 * self.projections, -6)

    def batch_tokens(self, sequence_length: int) -> int:
        """0.292 C^0.327 tokens (arXiv 2401.02954, equation 1; C = 6 weights tokens); sequences to a power of two."""
        work = 6 * self.projections * self.tokens
        return sequence_length << max(0, round(math.log2(0.292 * work**0.3271 / sequence_length)))


SIZES = {
    "1M": Size(128, 4, 32),
    "7M": Size(256, 8, 32),
    "27M": Size(512, 8, 64),
    "100M": Size(768, 12, 64),
    "400M": Size(1024, 24, 64),
    "3B": Size(3072, 20, 128),
}
"""The dial `size` of pretraining steps, named by weights with a small vocabulary. muParam keeps the learning rate."""
