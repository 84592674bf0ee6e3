"""What the steps `compress` and `recovery` measure on text: second moments of activations, losses, divergences."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from openafm.model import Transformer

LOGITS = 16_000_000
"""Most logits held at once (64 MB in float32)."""


@dataclass(frozen=True)
class Windows:
    """Token windows of every source of a split, each source with the same share."""

    tokens: Tensor
    """`(windows, length + 1)` int64."""
    bytes: float
    """UTF-8 bytes that the predicted tokens stand for, at each source's bytes a token."""

    @property
    def predicted(self) -> int:
        """Number of predicted tokens."""
        return self.tokens.shape[0] * (self.tokens.shape[1] - 1)

    def batches(self, vocabulary: int) -> tuple[Tensor, ...]:
        """Cut the windows into batches whose logits fit in memory."""
        return self.tokens.split(max(1, LOGITS // (vocabulary * self.tokens.shape[1])))


def read_windows(shards: Path, split: str, length: int, tokens: int) -> Windows:
    """Take about `tokens` tokens of a split in windows of `length`, evenly spread over each of its sources.

    Raises ValueError where no source is as long as a window.
    """
    index = json.loads((shards / "index.json").read_text())
    sources = {n: e for n, e in sorted(index["splits"].get(split, {}).items()) if e["tokens"] > length}
    if not sources:
        raise ValueError(f"{shards / 'index.json'} lists no {split} source longer than {length} tokens: lower `length`")
    rows, size = [], 0.0
    for name, entry in sources.items():
        data = np.memmap(shards / split / f"{name}.bin", dtype=np.dtype(index["dtype"]).newbyteorder("<"), mode="r")
        fitting = (len(data) - 1) // length
        count = min(fitting, max(1, tokens // (length * len(sources))))
        for start in np.linspace(0, fitting - 1, count).round().astype(int) * length:
            rows.append(data[start : start + length + 1].astype(np.int64))
        size += count * length * entry["bytes"] / entry["tokens"]
    return Windows(torch.from_numpy(np.stack(rows)), size)


@torch.no_grad()
def second_moments(model: Transformer, windows: Windows) -> dict[str, Tensor]:
    """Return the mean square of every projection's input channels, `(in,)` float64, by the projection's name."""
    sums: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def add(_module: Any, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
            squares = inputs[0].double().square().flatten(0, -2).sum(0)
            sums[name] = sums[name] + squares if name in sums else squares

        return add

    handles = [linear.register_forward_hook(watch(name)) for name, linear in model.linears().items()]
    for rows in windows.batches(model.config.vocab_size):
        model.hidden(rows[:, :-1])
    for handle in handles:
        handle.remove()
    return {name: total / windows.predicted for name, total in sums.items()}


@torch.no_grad()
def nats(model: Transformer, windows: Windows) -> list[float]:
    """Return the mean loss of each window in nats a token."""
    found: list[float] = []
    for rows in windows.batches(model.config.vocab_size):
        logits = model(rows[:, :-1]).float()
        found += F.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none").double().mean(1).tolist()
    return found


@dataclass(frozen=True)
class Comparison:
    """Two models on the same windows: means over each window's tokens, in nats."""

    base: list[float]
    """Loss of the base."""
    model: list[float]
    """Loss of the model."""
    kl: list[float]
    """KL(base || model)."""


@torch.no_grad()
def compare(model: Transformer, base: Transformer, windows: Windows) -> Comparison:
    """Run both models once over the windows."""
    found = Comparison([], [], [])
    for rows in windows.batches(model.config.vocab_size):
        log_p, log_q = (F.log_softmax(m(rows[:, :-1]).float(), -1) for m in (base, model))
        for losses, log_probs in ((found.base, log_p), (found.model, log_q)):
            losses += F.nll_loss(log_probs.transpose(1, 2), rows[:, 1:], reduction="none").double().mean(1).tolist()
        found.kl.extend(F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).double().mean(1).tolist())
    return found


@contextmanager
def replaced(model: Transformer, name: str, weight: Tensor) -> Iterator[None]:
    """Give one projection another weight for a while."""
    parameter = model.get_submodule(name).weight
    kept = parameter.data
    parameter.data = weight
    try:
        yield
    finally:
        parameter.data = kept
