"""Bits per byte and top-1 accuracy on held-out token shards: the measures every pretraining stage is judged by."""

import json
from dataclasses import dataclass
from math import log
from pathlib import Path

import numpy as np
import torch

from openafm.model import Transformer
from openafm.scoring import intervals


@dataclass(frozen=True)
class HeldOut:
    """What a model does on held-out windows. Per-window lists are in reading order, for intervals and paired tests."""

    tokens_per_window: int
    bytes_per_token: float
    nats: list[float]
    """Summed negative log-likelihood of each window's targets."""
    correct: list[int]
    """Number of targets in each window that were the model's first choice."""

    @property
    def windows(self) -> int:
        """Number of windows measured."""
        return len(self.nats)

    @property
    def tokens(self) -> int:
        """Number of predicted tokens."""
        return self.windows * self.tokens_per_window

    @property
    def bytes(self) -> float:
        """UTF-8 bytes the predicted tokens stand for, at the source's bytes per token."""
        return self.tokens * self.bytes_per_token

    @property
    def per_window(self) -> list[float]:
        """Bits per byte of each window."""
        return [n / log(2) / (self.tokens_per_window * self.bytes_per_token) for n in self.nats]

    @property
    def bits_per_byte(self) -> float:
        """Compression reached: independent of the tokenizer, so that vocabularies compare."""
        return sum(self.nats) / log(2) / self.bytes

    @property
    def accuracy(self) -> float:
        """Share of targets that were the first choice."""
        return sum(self.correct) / self.tokens

    def summary(self) -> dict[str, float | int | list[float]]:
        """Both measures with 95% intervals over windows, which are closer to independent than tokens are."""
        shares = [c / self.tokens_per_window for c in self.correct]
        return {
            "bits_per_byte": self.bits_per_byte,
            "bits_per_byte_interval": list(intervals.mean(self.per_window)),
            "top1": self.accuracy,
            "top1_interval": list(intervals.mean(shares)),
            "nats_per_token": sum(self.nats) / self.tokens,
            "tokens": self.tokens,
            "windows": self.windows,
        }


def bits_per_byte(
    model: Transformer,
    shards: Path,
    source: str,
    *,
    split: str = "heldout",
    length: int = 256,
    windows: int = 64,
    batch: int = 8,
) -> HeldOut:
    """Measure a model on one source's first `windows` windows of `length` predicted tokens.

    Raises ValueError when the shard is missing or shorter than one window.
    """
    tokens, bytes_per_token = _tokens(shards, split, source)
    count = min(windows, (len(tokens) - 1) // length)
    if count < 1:
        raise ValueError(f"{shards}/{split}/{source}.bin has {len(tokens)} tokens; a window needs {length + 1}")
    starts = np.arange(count)[:, None] * length + np.arange(length + 1)
    nats, correct = window_losses(model, torch.from_numpy(tokens[starts].astype(np.int64)), batch)
    return HeldOut(length, bytes_per_token, nats, correct)


def sources(shards: Path, split: str = "heldout") -> list[str]:
    """Names of the sources a shard folder holds for a split, sorted."""
    return sorted(json.loads((shards / "index.json").read_text())["splits"].get(split, {}))


@torch.inference_mode()
def window_losses(model: Transformer, windows: torch.Tensor, batch: int = 8) -> tuple[list[float], list[int]]:
    """Return summed nats and number of right first choices for each row of `windows` (count, length + 1) int64."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    nats: list[float] = []
    correct: list[int] = []
    for rows in windows.split(batch):
        logits = model(rows[:, :-1].to(device)).float()  # (rows, length, vocab)
        targets = rows[:, 1:].to(device)
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        nats += losses.double().sum(1).tolist()
        correct += (logits.argmax(-1) == targets).sum(1).tolist()
    model.train(was_training)
    return nats, correct


def _tokens(shards: Path, split: str, source: str) -> tuple[np.ndarray, float]:
    """Map a shard and return it with its mean bytes per token."""
    index = json.loads((shards / "index.json").read_text())
    entry = index["splits"].get(split, {}).get(source)
    if entry is None or not entry["tokens"]:
        known = ", ".join(sorted(index["splits"].get(split, {}))) or "none"
        raise ValueError(f"{shards} holds no tokens of {source!r} in split {split!r}; it holds: {known}")
    data = np.memmap(shards / split / f"{source}.bin", dtype=np.dtype(index["dtype"]).newbyteorder("<"), mode="r")
    return data, entry["bytes"] / entry["tokens"]
