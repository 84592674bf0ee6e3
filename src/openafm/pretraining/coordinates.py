"""Coordinate check of muParam (simple): how much activations move in a few steps, against width (step `coordinates`).

Under a parametrisation that transfers, a step moves each activation as much at every width: the slope of log movement
over log width is about 0. Measured is the RMS of the change of every block's output, and of the logits, on a fixed
batch after some steps on it. What "simple" leaves out shows: the embedding keeps the whole rate and is the output
matrix too (arXiv 2309.14322, section 3.2.2; the check: arXiv 2203.03466, appendix D.1).
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openafm.model import ModelConfig, Transformer
from openafm.model.muparam import initialise, parameter_groups
from openafm.stage import Config, Context, Metrics
from openafm.training.batches import TokenBatches
from openafm.training.losses import chunked_next_token
from openafm.training.optimizers import RMSPropMomentum

RESULT = "coordinates.json"


class CoordinatesConfig(Config):
    """What is checked."""

    widths: list[int] = [64, 128, 256, 512]
    base_width: int = 64
    """muParam's; the standard parametrisation takes each width as its own base."""
    layers: int = 2
    steps: int = 8
    lr: float = 0.01
    seeds: list[int] = [1, 2, 3]
    rows: int = 8
    """Windows of the batch."""
    sequence_length: int = 64


def coordinates(config: CoordinatesConfig, context: Context, *, shards: Path) -> Metrics:
    """Write `coordinates.json`: for each parametrisation and activation the movement at each width, a mean over seeds,
    and its slope with that of every seed.
    """
    kinds: dict[str, Callable[[int], int]] = {
        "muParam (simple)": lambda _: config.base_width,
        "standard": lambda width: width,
    }
    found: dict[str, dict[str, dict[str, object]]] = {}
    for kind, base in kinds.items():
        by_seed = []
        for seed in context.track(config.seeds, kind):
            batch = TokenBatches(
                shards, {"web": 1.0}, sequence_length=config.sequence_length,
                batch_tokens=config.rows * config.sequence_length, tokens=config.rows * config.sequence_length,
                seed=seed,
            )[0]  # fmt: skip
            size = json.loads((shards / "index.json").read_text())["vocab_size"]
            by_seed.append([movement(config, batch["inputs"], size, w, base(w), seed) for w in config.widths])
        found[kind] = {place: _told(config.widths, place, by_seed) for place in by_seed[0][0]}
    (context.out / RESULT).write_text(json.dumps({"widths": config.widths, "movement": found}, indent=1) + "\n")
    steepest = {kind: max((row["slope"] for row in rows.values()), key=abs) for kind, rows in found.items()}  # type: ignore[arg-type]
    return {"headline": ", ".join(f"steepest slope, {kind}: {slope:+.2f}" for kind, slope in steepest.items())}


def _told(widths: list[int], place: str, by_seed: list[list[dict[str, float]]]) -> dict[str, object]:
    moved = [[at[place] for at in widths_] for widths_ in by_seed]
    slopes = [slope(widths, values) for values in moved]
    return {
        "mean": [float(np.mean(column)) for column in zip(*moved, strict=True)],
        "slope": round(float(np.mean(slopes)), 4),
        "slopes": [round(value, 4) for value in slopes],
    }


def movement(
    config: CoordinatesConfig, tokens: Tensor, vocabulary: int, width: int, base: int, seed: int
) -> dict[str, float]:
    """RMS change of each block's output and of the logits on `tokens` `(rows, length)`, after training on them."""
    shape = ModelConfig(
        vocab_size=vocabulary, d_model=width, n_layers=config.layers, n_heads=max(2, width // 32),
        n_kv_heads=max(1, width // 64), head_dim=32, d_ff=3 * width, rope_base=500.0,
    )  # fmt: skip
    model = initialise(Transformer(shape), seed)
    optimizer = RMSPropMomentum(parameter_groups(model, base), config.lr)
    before = activations(model, tokens)
    for _ in range(config.steps):
        output = model.model.embed_tokens.weight
        chunked_next_token(model.hidden(tokens[:, :-1]), output, tokens[:, 1:]).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    after = activations(model, tokens)
    return {place: float((after[place] - before[place]).square().mean().sqrt()) for place in before}


@torch.no_grad()
def activations(model: Transformer, tokens: Tensor) -> dict[str, Tensor]:
    """Outputs of every attention and FFN, and the logits."""
    found: dict[str, Tensor] = {}
    hooks = [
        part.register_forward_hook(lambda _, __, output, name=name: found.__setitem__(name, output.clone()))
        for i, block in enumerate(model.blocks)
        for name, part in ((f"attention {i}", block.self_attn), (f"mlp {i}", block.mlp))
    ]
    found["logits"] = model(tokens[:, :-1])
    for hook in hooks:
        hook.remove()
    return found


def slope(widths: list[int], values: list[float]) -> float:
    """Least-squares slope of log value over log width."""
    return float(np.polyfit([math.log(width) for width in widths], [math.log(value) for value in values], 1)[0])
