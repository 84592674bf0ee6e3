"""Step `qat`: quantization-aware training at 2 bits with a learned clip.

AFM's 2025 report (arXiv 2507.13575, section on quantization): the forward pass sees

    W~ = s (clamp(round(W / s + z), q_min, q_max) - z),   s = f max|W| / q_max

with the rounding's gradient passed straight through and f learned; here one f for every `group` rows, so that a group's
values are one table of the package. It starts where error feedback ends: W are the values that its columns were rounded
from. What it writes lies on the tables exactly, so the step `compress` packs it without loss.
"""

from collections.abc import Mapping
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openafm.adapters.lora import put_layer
from openafm.compression.calibration import Windows, compare, read_windows, readings
from openafm.compression.feedback import corrected, eliminate, feed_back
from openafm.compression.objective import LossKind, TextConfig, output_loss, text_batches
from openafm.model import Transformer
from openafm.model.checkpoint import load_model, save_model
from openafm.stage import Context, Hardware, Metrics
from openafm.training.loop import train
from openafm.training.optimizers import RMSPropMomentum
from openafm.training.schedules import cosine

BITS = 2
Q_MIN, Q_MAX, ZERO = -(2 ** (BITS - 1)), 2 ** (BITS - 1) - 1, -0.5
"""The balanced grid: W~ / s is -1.5, -0.5, 0.5 or 1.5."""
CLIPS = torch.linspace(0.02, 1.0, 99)
"""First values of f that are tried."""


class QATConfig(TextConfig):
    """The grid, and the text that trains on it."""

    group: int = 16
    """Rows that share one clip."""
    loss: LossKind = "kl"
    lr: float = 1e-4
    clip_lr: float = 1e-3
    """Of f: one number where a group's weights are thousands."""


class ClippedLinear(nn.Linear):
    """A linear layer that multiplies by W~."""

    def __init__(self, weight: Tensor, clip: Tensor, group: int):
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight, self.clip, self.group = nn.Parameter(weight), nn.Parameter(clip), group
        """`clip` `(groups,)` is f."""

    def quantized(self) -> Tensor:
        """W~ `(out, in)`."""
        step = self.clip * largest(self.weight.detach(), self.group) / Q_MAX
        return on_grid(self.weight, step.repeat_interleave(self.group)[: self.out_features, None])

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., in)` to `(..., out)`."""
        return F.linear(x, self.quantized())


def on_grid(weight: Tensor, step: Tensor) -> Tensor:
    """Return s (clamp(round(W / s + z), q_min, q_max) - z); the rounding's gradient goes straight through."""
    scaled = weight / step + ZERO
    rounded = scaled + (scaled.round() - scaled).detach()
    return step * (rounded.clamp(Q_MIN, Q_MAX) - ZERO)


def largest(weight: Tensor, group: int) -> Tensor:
    """Return max|W| of every `group` rows, `(groups,)`."""
    return torch.stack([rows.abs().max() for rows in weight.split(group)])


def qat(config: QATConfig, context: Context, *, model: Path, shards: Path) -> Metrics:
    """Train the model folder's projections on the 2-bit grid; writes the model whose weights lie on it."""
    torch.set_num_threads(context.hardware.threads)
    base, student = (load_model(model).requires_grad_(False) for _ in range(2))
    heldout = read_windows(shards, "heldout", config.sequence_length, config.heldout_tokens)
    calibration = read_windows(shards, "train", config.sequence_length, config.calibration_tokens)
    groups = dict.fromkeys(student.linears(), config.group)
    layers = put_on_grid(base, student, calibration, groups, context.hardware)
    before = compare(student, base, heldout)
    tokens = fit_grid(student, layers, base, config, context, shards)
    settle(student, layers)
    after = compare(student, base, heldout)
    save_model(student, context.out, model)
    kl = {"start": mean(before.kl), "trained": mean(after.kl)}
    loss = {"base": mean(before.base), "start": mean(before.model), "trained": mean(after.model)}
    changed = "KL {start:.4f} -> {trained:.4f}".format(**kl), "loss {start:.3f} -> {trained:.3f}".format(**loss)
    return {
        "headline": f"{BITS} bits: {', '.join(changed)} nats a token",
        "training_tokens": tokens,
        "heldout_tokens": heldout.predicted,
        "kl": {name: round(value, 6) for name, value in kl.items()},
        "loss": {name: round(value, 6) for name, value in loss.items()},
    }


@torch.no_grad()
def put_on_grid(
    base: Transformer, model: Transformer, calibration: Windows, groups: Mapping[str, int], hardware: Hardware
) -> dict[str, ClippedLinear]:
    """Put a `ClippedLinear` in each projection's place in `model`, one after another; returns them by name."""
    layers = {}
    for reading in readings(base, model, calibration, hardware):
        elimination = eliminate(reading.gram)
        for name in reading.names:
            weight, group = corrected(base.get_parameter(f"{name}.weight"), reading), groups[name]
            step = best_step(weight, elimination.importance, group)
            tables = step[:, None] * (torch.arange(Q_MIN, Q_MAX + 1) - ZERO)
            _, values = feed_back(weight, elimination, tables, group)
            layers[name] = ClippedLinear(values, step * Q_MAX / largest(values, group), group)
            put_layer(model, name, layers[name])
    return layers


def best_step(weight: Tensor, importance: Tensor, group: int) -> Tensor:
    """Return the step s of every group `(groups,)` of least squared error, columns weighted by `importance`."""
    found = []
    for rows in weight.split(group):
        steps = CLIPS * rows.abs().max() / Q_MAX
        errors = [((on_grid(rows, step) - rows).square() @ importance).sum() for step in steps]
        found.append(steps[torch.stack(errors).argmin()])
    return torch.stack(found)


def fit_grid(
    student: Transformer,
    layers: dict[str, ClippedLinear],
    base: Transformer,
    config: QATConfig,
    context: Context,
    shards: Path,
) -> int:
    """Train weights and clips; returns the tokens it took."""
    groups = [
        {"params": [layer.weight for layer in layers.values()], "mult": 1.0},
        {"params": [layer.clip for layer in layers.values()], "mult": config.clip_lr / config.lr},
    ]
    batches = text_batches(config, context, shards)
    tokens = len(batches) * batches.rows * config.sequence_length
    schedule = cosine(tokens, round(config.warmup * tokens), config.floor)
    loss = output_loss(config.loss, base)
    train(student, batches, loss, RMSPropMomentum(groups, config.lr), schedule, context, label="qat")
    return tokens


@torch.no_grad()
def settle(model: Transformer, layers: dict[str, ClippedLinear]) -> None:
    """Put plain layers back, whose weights are W~ in the float16 values that a table can hold."""
    for name, layer in layers.items():
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(layer.quantized().half().float(), requires_grad=False)
        put_layer(model, name, plain)
