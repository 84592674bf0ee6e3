"""Coordinate check of muParam (simple): how much activations move in a few steps, against width.

    openafm bench coordinate-check --widths 64,128,256,512

Under a parametrisation that transfers, a step moves each activation as much at every width: the slope of log movement
over log width is about 0. RMS of the change of every block's output, and of the logits, on one fixed batch after some
steps of RMSProp with momentum, muParam (simple) beside the standard parametrisation. What "simple" leaves out shows:
the embedding keeps the whole rate and is the output matrix too (arXiv 2309.14322, section 3.2.2).
"""

import json
import math
from pathlib import Path

import matplotlib
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from harness import machine, options
from openafm.model import ModelConfig, Transformer
from openafm.model.muparam import initialise, parameter_groups
from openafm.training.losses import chunked_next_token
from openafm.training.optimizers import RMSPropMomentum

matplotlib.use("Agg")
from matplotlib import pyplot as plt

KINDS = ("muParam (simple)", "standard")


def main() -> None:
    o = options(__doc__, widths="64,128,256,512", steps=8, lr=0.01, layers=4, threads=2, out="runs/coordinate-check")
    torch.set_num_threads(o.threads)
    widths = [int(width) for width in o.widths.split(",")]
    moved = {
        kind: [movement(width, widths[0] if kind == KINDS[0] else width, o.steps, o.lr, o.layers) for width in widths]
        for kind in KINDS
    }
    places = list(moved[KINDS[0]][0])
    slopes = {
        kind: {place: round(slope(widths, [row[place] for row in rows]), 3) for place in places}
        for kind, rows in moved.items()
    }
    shown = Table(title=f"movement after {o.steps} steps at lr {o.lr:g}: slope of log RMS change over log width")
    for column in ("activation", *KINDS):
        shown.add_column(column, justify="left" if column == "activation" else "right")
    for place in places:
        shown.add_row(place, *(f"{slopes[kind][place]:+.2f}" for kind in KINDS))
    Console(width=110).print(shown)
    Path(o.out).mkdir(parents=True, exist_ok=True)
    plot(widths, moved, Path(o.out) / "coordinate-check.svg")
    if o.json:
        print(json.dumps({"name": "coordinate-check", "unit": "slope", "slopes": slopes, "machine": machine()}))


def movement(width: int, base: int, steps: int, lr: float, layers: int) -> dict[str, float]:
    """RMS change of each block's output and of the logits on a fixed batch."""
    config = ModelConfig(
        vocab_size=512, d_model=width, n_layers=layers, n_heads=4, n_kv_heads=2, head_dim=width // 4, d_ff=3 * width
    )
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 512, (8, 65), generator=generator)
    model = initialise(Transformer(config), 0)
    optimizer = RMSPropMomentum(parameter_groups(model, base), lr)
    before = activations(model, tokens)
    for _ in range(steps):
        output = model.model.embed_tokens.weight
        chunked_next_token(model.hidden(tokens[:, :-1]), output, tokens[:, 1:]).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    after = activations(model, tokens)
    return {place: float((after[place] - before[place]).square().mean().sqrt()) for place in before}


@torch.no_grad()
def activations(model: Transformer, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
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
    return float(np.polyfit([math.log(width) for width in widths], [math.log(value) for value in values], 1)[0])


def plot(widths: list[int], moved: dict[str, list[dict[str, float]]], path: Path) -> None:
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for panel, (kind, rows) in zip(panels, moved.items(), strict=True):
        for place in rows[0]:
            panel.plot(widths, [row[place] for row in rows], marker="o", label=place)
        panel.set(xscale="log", yscale="log", title=kind, xlabel="width")
    panels[0].set_ylabel("RMS change")
    panels[0].legend(frameon=False, fontsize=7)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
