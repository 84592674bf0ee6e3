"""What a pretraining stage reads: shared by training, mask learning and the teacher's token cache."""

from pathlib import Path

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
