"""What the steps `compress` and `recovery` measure on text: Gram matrices of activations, losses, divergences."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from openafm.model import Transformer
from openafm.model.transformer import Block, rope_angles
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
        cut: tuple[Tensor, ...] = self.tokens.split(max(1, LOGITS // (vocabulary * self.tokens.shape[1])))
        return cut


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


@dataclass(frozen=True)
class Reading:
    """Projections that read the same input, and what calibration text says of it.

    x is that input in the base, x^ in the model that is being compressed; d is what the residual stream lacks there, in
    the base less in the model. Means over all tokens, in float32.
    """

    names: tuple[str, ...]
    """Of the projections, in the model."""
    gram: Tensor
    """E[x^ x^T] `(in, in)`."""
    change: Tensor
    """E[(x - x^) x^T] `(in, in)`."""
    lack: Tensor | None
    """E[d x^T] `(out, in)` where the projections write to the residual stream."""


READERS = {
    "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
"""Projections of a block that read the same input, by the first of them, in the order of computing."""
STREAMS = {"self_attn.o_proj": "input_layernorm", "mlp.down_proj": "post_attention_layernorm"}
"""Where the residual stream stands that a projection adds to: that norm's input."""
TOGETHER = 4096
"""Tokens that go through a block at once."""


@torch.no_grad()
def readings(base: Transformer, model: Transformer, windows: Windows, hardware: Hardware) -> Iterator[Reading]:
    """Walk through the blocks of `base` and `model` side by side, and yield what each projection reads.

    What the caller makes of the projections' weights in `model` before it asks for the next is what the next read, so
    each can make up for those before it. Where both are one model, which then has to stay as it is, all is read at
    once. Two blocks' inputs and one's activations are in memory, however deep the model is. Forward passes are of the
    run's precision.
    """
    tokens = windows.tokens[:, :-1]
    rope = rope_angles(torch.arange(tokens.shape[1]), model.config.head_dim, model.config.rope_base)

    def run(block: Block, x: Tensor) -> Tensor:
        """What comes out of a block."""
        with autocast(hardware):
            out: Tensor = block(x, rope, None, None)
        return out

    parts = tokens.split(max(1, TOGETHER // tokens.shape[1]))
    exact, lossy = ([m.model.embed_tokens(part) for part in parts] for m in (base, model))
    for number, (block, changed) in enumerate(zip(base.blocks, model.blocks, strict=True)):
        seen, after = [], []
        for x in exact:
            with _recording(block, (*READERS, *STREAMS.values())) as found:
                after.append(run(block, x))
            seen.append(found)
        for reader, names in READERS.items():
            sums = [torch.zeros(())] * 3
            for theirs, x in zip(seen, lossy, strict=True):
                ours = theirs
                if base is not model:
                    with _recording(changed, (reader, *STREAMS.values()), last=reader) as ours:
                        run(changed, x)
                sums = [total + part for total, part in zip(sums, _products(reader, theirs, ours), strict=True)]
            gram, change, lack = (total / windows.predicted for total in sums)
            full = tuple(f"model.layers.{number}.{name}" for name in names)
            yield Reading(full, gram, change, lack if reader in STREAMS else None)
        exact = after
        lossy = exact if base is model else [run(changed, x) for x in lossy]


class _ReachedError(Exception):
    """Nothing that a block computes from here on is of use."""


@contextmanager
def _recording(block: Block, names: Sequence[str], last: str = "") -> Iterator[dict[str, Tensor]]:
    """What the named parts of a block read while it computes, `(tokens, width)` float32.

    The computation, which is all that the context may hold, ends before the part `last`.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str, _module: Any, inputs: tuple[Tensor, ...]) -> None:
        """Note what the part `name` reads; raises _ReachedError before `last`."""
        seen[name] = inputs[0].flatten(0, -2).float()
        if name == last:
            raise _ReachedError

    handles = [block.get_submodule(name).register_forward_pre_hook(partial(keep, name)) for name in names]
    try:
        with suppress(_ReachedError):
            yield seen
    finally:
        for handle in handles:
            handle.remove()


def _products(reader: str, theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over tokens of the three products of a `Reading`."""
    x = ours[reader]
    stream = STREAMS.get(reader)
    lack = (theirs[stream] - ours[stream]).T @ x if stream else torch.zeros(())
    return x.T @ x, (theirs[reader] - x).T @ x, lack


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
