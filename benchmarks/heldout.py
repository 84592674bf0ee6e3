"""How compressed models are judged, shared by the parts of `openafm bench compression`.

Every contestant reads the same windows of two domains, one of which nothing is trained or calibrated on, in float32.
The base is run once: its final hidden states are kept beside its losses, and its logits are computed from them anew,
so that a contestant costs one pass of its own. Each appends one line to a file of JSON lines, with its loss and its
KL to the base in every window: any two contestants can later be compared pairwise, and a contest that broke off goes
on where it stopped.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from openafm.compression.calibration import Windows, read_windows
from openafm.compression.embedding import quantize_embedding
from openafm.files import default_cache, digest
from openafm.model import Transformer
from openafm.model.checkpoint import load_model
from openafm.scoring import intervals

DOMAINS = {"documentation": "shards", "code": "unseen"}
"""Domain -> step of the recipe `device` whose held-out part it is; no step trains on `unseen`."""
CALIBRATION: dict[str, int] = {"length": 256, "tokens": 16_384}
"""Training text that our columns' errors are weighed on, as llama.cpp's importance and coremltools' sensitivities."""
LENGTH, TOKENS = 512, 25_600
"""Tokens of a window, and of each domain."""


@dataclass(frozen=True)
class Base:
    """The model that contestants are made from and compared with."""

    name: str
    folder: Path
    """Its model folder."""
    windows: dict[str, Windows]
    hidden: dict[str, NDArray[np.float32]]
    """`(windows, length, width)`, after the last norm."""
    losses: dict[str, NDArray[np.float64]]
    """`(windows,)`, nats a token."""
    embedding: Tensor
    """`(vocabulary, width)`, which makes logits of hidden states."""
    contest: str
    """Digest of windows and weights: only lines with the same one are comparable."""


def heldout(run: Path, length: int = LENGTH, tokens: int = TOKENS) -> dict[str, Windows]:
    """The held-out windows of both domains from a run of the recipe `device`, evenly spread over each."""
    return {name: read_windows(run / step, "heldout", length, tokens) for name, step in DOMAINS.items()}


def read_base(run: Path, step: str, tokens: int = TOKENS) -> Base:
    """The base made by `step` of the run (`import` or `offgrid`); what it computes is kept in the cache's folder."""
    folder, windows = run / step, heldout(run, tokens=tokens)
    seen = hashlib.sha256(digest(folder / "model.safetensors").encode())
    for part in windows.values():
        seen.update(part.tokens.numpy().tobytes())
    contest = seen.hexdigest()[:12]
    stored = default_cache() / f"heldout-{step}-{contest}.npz"
    model = load_model(folder)
    if not stored.exists():
        _run_base(model, windows, stored)
    with np.load(stored) as arrays:
        hidden, losses = ({name: arrays[f"{name}.{what}"] for name in windows} for what in ("hidden", "losses"))
    return Base(step, folder, windows, hidden, losses, model.model.embed_tokens.weight.detach(), contest)


@torch.no_grad()
def _run_base(model: Transformer, windows: dict[str, Windows], path: Path) -> None:
    """Write the base's hidden states and losses, whole or not at all."""
    arrays = {}
    for name, part in windows.items():
        states = [model.hidden(rows[None, :-1])[0] for rows in part.tokens]
        found = [_loss(model.logits(state), rows) for state, rows in zip(states, part.tokens, strict=True)]
        arrays |= {f"{name}.hidden": torch.stack(states).numpy(), f"{name}.losses": np.array(found)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.npz")
    np.savez(partial, **arrays)
    partial.rename(path)


def _loss(logits: Tensor, rows: Tensor) -> float:
    return float(F.cross_entropy(logits, rows[1:], reduction="none").double().mean())


@torch.no_grad()
def judge(model: Transformer, base: Base) -> dict[str, dict[str, Any]]:
    """Domain -> perplexity, KL to the base and log-loss over the base's, with 95% intervals over windows."""
    figures = {}
    for name, part in base.windows.items():
        losses, kl = [], []
        for state, rows in zip(base.hidden[name], part.tokens, strict=True):
            log_q = F.log_softmax(model(rows[None, :-1])[0], -1)
            log_p = F.log_softmax(F.linear(torch.from_numpy(state), base.embedding), -1)
            losses.append(float(F.nll_loss(log_q, rows[1:], reduction="none").double().mean()))
            kl.append(float(F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).double().mean()))
        figures[name] = _figures(part, losses, kl, base.losses[name])
    return figures


def _figures(part: Windows, losses: list[float], kl: list[float], base: NDArray[np.float64]) -> dict[str, Any]:
    over = (np.array(losses) - base).tolist()
    return {
        "tokens": part.predicted,
        "perplexity": round(exp(np.mean(losses)), 4),
        "loss_over_base": round(float(np.mean(over)), 5),
        "loss_over_base_interval": [round(end, 5) for end in intervals.mean(over)],
        "kl": round(float(np.mean(kl)), 5),
        "kl_interval": [round(end, 5) for end in intervals.mean(kl)],
        "losses": [round(loss, 5) for loss in losses],
        "kls": [round(value, 5) for value in kl],
    }


def with_int8_embedding(model: Transformer) -> Transformer:
    """The model with its embedding as packages have it."""
    embedding = model.model.embed_tokens.weight
    embedding.data = torch.from_numpy(quantize_embedding(embedding.detach().numpy()).dequantize())
    return model


def whole_size(model: Transformer, projection_bits: int) -> dict[str, float]:
    """Bits a weight, twice, and MB over all that ships: projections, int8 embedding and scales, norms, any adapter."""
    vocabulary, width = model.model.embed_tokens.weight.shape
    weights = sum(linear.weight.numel() for linear in model.linears().values())
    norms = sum(p.numel() for name, p in model.named_parameters() if name.endswith("norm.weight"))
    adapter = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    bits = projection_bits + vocabulary * (8 * width + 16) + 32 * norms + 16 * adapter
    return {
        "projection_bits_per_weight": round(projection_bits / weights, 4),
        "package_bits_per_weight": round(bits / model.config.parameters, 4),
        "megabytes": round(bits / 8e6, 4),
    }


def lines(results: Path) -> list[dict[str, Any]]:
    """What the file of results holds so far."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def enter(
    results: Path, base: Base, name: str, make: Callable[[], tuple[Transformer, dict[str, Any]]]
) -> dict[str, Any]:
    """The line of the contestant `name`: from the file, or `make` its model and sizes, judge it and append the line.

    Sizes are `projection_bits_per_weight`, `package_bits_per_weight` and `megabytes` (openafm.compression.package), and
    whatever else describes it.
    """
    for line in lines(results):
        if (line["contest"], line["name"]) == (base.contest, name):
            return line
    model, sizes = make()
    line = {"base": base.name, "contest": base.contest, "name": name, **sizes, "domains": judge(model, base)}
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as file:  # one write: contestants may run side by side
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return line
