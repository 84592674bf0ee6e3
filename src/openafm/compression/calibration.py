"""What the steps `compress` and `recovery` measure on text: Gram matrices of activations, losses, divergences."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from openafm.model import Transformer
from openafm.model.transformer import rope_angles
from openafm.stage import Hardware
from openafm.training.hardware import autocast

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
def grams_by_block(model: Transformer, windows: Windows, hardware: Hardware) -> Iterator[dict[str, Tensor]]:
    """Yield, block by block, the Gram matrix `(in, in)` of each projection's inputs: the mean of x x^T, float32.

    The inputs are of the run's precision. By the projection's name in the model. What the caller makes of a block's
    weights before it asks for the next is what the next block's inputs come from, so each can make up for those before
    it. One block's matrices and the windows' hidden states are in memory, however deep the model is.
    """
    tokens = windows.tokens[:, :-1]
    rope = rope_angles(torch.arange(tokens.shape[1]), model.config.head_dim, model.config.rope_base)
    hidden = list(model.model.embed_tokens(tokens).split(max(1, TOGETHER // tokens.shape[1])))
    for number, block in enumerate(model.blocks):
        grams: dict[str, Tensor] = {}
        handles = [
            block.get_submodule(name).register_forward_pre_hook(partial(_add_gram, grams, name)) for name in READERS
        ]
        with autocast(hardware):
            for x in hidden:
                block(x, rope, None, None)
        for handle in handles:
            handle.remove()
        yield {
            f"model.layers.{number}.{name}": grams[first] / windows.predicted
            for first, names in READERS.items()
            for name in names
        }
        with autocast(hardware):
            hidden = [block(x, rope, None, None) for x in hidden]


READERS = {
    "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
"""Projections of a block that read the same input, by the first of them."""

TOGETHER = 4096
"""Tokens that go through a block at once."""


def _add_gram(grams: dict[str, Tensor], name: str, _module: Any, inputs: tuple[Tensor, ...]) -> None:
    x = inputs[0].flatten(0, -2).float()
    with torch.autocast(x.device.type, enabled=False):
        gram = x.T @ x
    grams[name] = grams[name] + gram if name in grams else gram


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
