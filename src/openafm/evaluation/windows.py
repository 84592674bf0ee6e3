"""Held-out text through a model: nats, hits and bytes of each window, and loss by position (stage `evaluate`).

The windows lie evenly over each flow's held-out shard, the same ones for every model of a recipe, so that two models
can be compared window by window.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openafm import jsonl
from openafm.model import Transformer
from openafm.tokenizer import Tokenizer

LOGITS = 8_000_000
"""Most logits held at once (32 MB): rows of a batch follow from it."""


@dataclass(frozen=True)
class Window:
    """What a model does on one window of one flow."""

    flow: str
    tokens: int
    bytes: int
    nats: float
    correct: int


def held_out_flows(shards: Path) -> list[str]:
    """Flows with held-out text. Raises ValueError when there is none."""
    index = json.loads((shards / "index.json").read_text())
    flows = sorted(flow for flow, size in index["splits"].get("heldout", {}).items() if size["tokens"] > 1)
    if not flows:
        raise ValueError(f"{shards / 'index.json'} lists no held-out text: raise the held-out share of step shards")
    return flows


def held_out(shards: Path, flow: str) -> np.ndarray:
    """One flow's held-out tokens, memory-mapped."""
    dtype = json.loads((shards / "index.json").read_text())["dtype"]
    return np.memmap(shards / "heldout" / f"{flow}.bin", dtype=dtype, mode="r")


def windows(tokens: np.ndarray, length: int, count: int) -> Tensor:
    """Up to `count` windows `(windows, length + 1)` spread evenly over `tokens`; a short shard is one window."""
    length = min(length, len(tokens) - 1)
    fitting = (len(tokens) - 1) // length
    chosen = np.linspace(0, fitting - 1, min(count, fitting)).round().astype(int)
    rows = [tokens[i * length : i * length + length + 1].astype(np.int64) for i in chosen]
    return torch.from_numpy(np.stack(rows))


@torch.inference_mode()
def predictions(model: Transformer, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Nats and hits of every target, a batch at a time: `(batch, length)` float32 and bool."""
    batch = max(1, LOGITS // (rows.shape[1] * model.config.vocab_size))
    together = max(1, LOGITS // (batch * model.config.vocab_size))  # positions; fewer than all in a long row only
    for part in rows.split(batch):
        hidden = model.hidden(part[:, :-1]).split(together, 1)
        pieces = [
            _judge(model, states, wanted) for states, wanted in zip(hidden, part[:, 1:].split(together, 1), strict=True)
        ]
        nats, hits = zip(*pieces, strict=True)
        yield torch.cat(nats, 1), torch.cat(hits, 1)


def _judge(model: Transformer, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = model.logits(hidden).float()
    nats = logits.logsumexp(-1) - logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return nats, logits.argmax(-1) == targets


def measure(model: Transformer, tokenizer: Tokenizer, flow: str, rows: Tensor) -> list[Window]:
    """Nats, top-1 hits and UTF-8 bytes of each of `rows` `(windows, length + 1)`; the first token is only context."""
    found: list[Window] = []
    for nats, hits in predictions(model, rows):
        for row_nats, row_hits in zip(nats.double().sum(1).tolist(), hits.sum(1).tolist(), strict=True):
            targets = rows[len(found), 1:].tolist()
            text = tokenizer.decode(targets)
            found.append(Window(flow, len(targets), len(text.encode()), round(row_nats, 4), row_hits))
    return found


def write_windows(found: list[Window], path: Path) -> None:
    """Keep what each window gave, for paired comparisons."""
    jsonl.write(path, map(asdict, found))


def read_windows(path: Path) -> list[Window]:
    """Read what `write_windows` wrote."""
    return [Window(**row) for row in jsonl.read(path)]


def loss_by_position(model: Transformer, rows: Tensor) -> dict[str, list[float]]:
    """Mean nats a token of each window by distance from its start, in buckets [0, 64), [64, 128), [128, 256) ..."""
    nats = torch.cat([part for part, _ in predictions(model, rows)]).double()
    edges = [0, 64]
    while edges[-1] < nats.shape[1]:
        edges.append(min(2 * edges[-1], nats.shape[1]))
    edges[-1] = nats.shape[1]
    return {f"{low:04d}-{high:04d}": nats[:, low:high].mean(1).tolist() for low, high in pairwise(edges)}
