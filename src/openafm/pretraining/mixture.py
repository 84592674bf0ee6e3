"""What a pretraining stage reads: shared by training, mask learning and the teacher's token cache."""

from pathlib import Path
from typing import Any

from pydantic import model_validator

from openafm.model.presets import SIZES, Size
from openafm.stage import Config
from openafm.training.batches import TokenBatches


class Data(Config):
    """What a stage reads: a mixture of token shards, in windows of one length, for a number of tokens."""

    mixture: dict[str, float] = {"web": 0.7, "code": 0.2, "math": 0.1}
    """Weights over the shards' sources."""
    sequence_length: int = 256
    batch_tokens: int = 2048
    tokens: int = 500_000
    draw: int = 0
    """Which order of the windows: a stage that must not read what an earlier one read first takes another number."""
    size: str | None = None
    """The one dial, a name of `openafm.model.presets.SIZES`: it gives what is left out of tokens, batch_tokens and, of
    a new model, the shape. The learning rate stays (muParam)."""
    size_share: float = 1.0
    """This step's part of the dial's tokens. AFM: 1 core, 0.16 continued, 0.016 long, 0.03 masks."""

    @model_validator(mode="before")
    @classmethod
    def _dialled(cls, given: Any) -> Any:
        """Write out what the dial gives, so that a resolved config tells all of it; null leaves a value to the dial."""
        if not isinstance(given, dict) or given.get("size") is None:
            return given
        if given["size"] not in SIZES:
            raise ValueError(f"size {given['size']!r} is not on the dial: {', '.join(SIZES)}")
        return cls.dialled(SIZES[given["size"]], {name: value for name, value in given.items() if value is not None})

    @classmethod
    def dialled(cls, size: Size, given: dict[str, Any]) -> dict[str, Any]:
        """`given`, and what the dial gives a step of this kind where it says nothing."""
        length = given.get("sequence_length", cls.model_fields["sequence_length"].default)
        batch = given.get("batch_tokens", size.batch_tokens(length))
        share = given.get("size_share", cls.model_fields["size_share"].default)
        return {"batch_tokens": batch, "tokens": max(1, round(share * size.tokens / batch)) * batch} | given

    def batches(self, shards: Path, seed: int, *more: Path) -> TokenBatches:
        """The stage's batches, out of one or more folders of shards."""
        return TokenBatches(
            [shards, *more],
            self.mixture,
            sequence_length=self.sequence_length,
            batch_tokens=self.batch_tokens,
            tokens=self.tokens,
            seed=seed + self.draw,
        )
