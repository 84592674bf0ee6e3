"""The one training loop: data + loss + schedule, for every stage.

A stage hands over batches, a loss and an optimizer; the loop resumes from its checkpoint in `context.scratch`, so a
killed stage ends with the bytes of an unbroken one. Randomness (dropout) is seeded anew for each step.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from openafm.stage import Context
from openafm.training.batches import Batch, Batches
from openafm.training.checkpoints import load_checkpoint, save_checkpoint
from openafm.training.hardware import autocast
from openafm.training.losses import LossOutput
from openafm.training.optimizers import RMSPropMomentum
from openafm.training.schedules import Schedule

Loss = Callable[[Any, Batch], LossOutput]
Record = dict[str, float]


def train(
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    optimizer: RMSPropMomentum,
    schedule: Schedule,
    context: Context,
    *,
    label: str = "train",
    log_every: int = 10,
    checkpoint_seconds: float = 20.0,
    before_step: Callable[[int], None] | None = None,
    snapshot: Callable[[int], None] | None = None,
    snapshots: Sequence[int] = (),
) -> list[Record]:
    """Train `model` over all of `batches`; the curve, a record every `log_every` steps and at the end.

    `schedule` maps tokens seen to the factor of learning rate and decay. `before_step(step)` may move what a stage
    anneals; `snapshot(step)` is called when each of `snapshots` steps is done and has to write into `context.scratch`,
    for a resumed run does not pass it again. Raises ValueError when the loss is no longer finite.
    """
    device = torch.device(context.hardware.device)
    model.to(device).train()
    checkpoint = context.scratch / label
    records: list[Record] = []
    step, tokens = load_checkpoint(checkpoint, model, optimizer, records)
    started = saved = time.monotonic()
    seen = 0
    while step < len(batches):
        if before_step is not None:
            before_step(step)
        _seed(context.seed, label, step)
        batch = {name: tensor.to(device) for name, tensor in batches[step].items()}
        size = _tokens(batch)
        optimizer.scale = schedule(tokens + size)
        value, metrics = _accumulate(model, batch, loss, context)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, tokens, seen = step + 1, tokens + size, seen + size
        if step % log_every == 0 or step == len(batches):
            records.append(_record(step, tokens, value, metrics, optimizer))
        if step in snapshots and snapshot is not None:
            snapshot(step)
            saved = 0.0  # a checkpoint must not be older than a snapshot
        if step < len(batches) and time.monotonic() - saved > checkpoint_seconds:
            save_checkpoint(checkpoint, model, optimizer, records, step, tokens)
            saved = time.monotonic()
        context.report(f"{label} loss {value:.3f}", step, len(batches))
    save_checkpoint(checkpoint, model, optimizer, records, step, tokens)
    if seen:
        seconds = time.monotonic() - started
        context.note(**{f"{label}_tokens_per_second": round(seen / seconds, 1)})
    model.eval()
    return records


def _seed(seed: int, label: str, step: int) -> None:
    digest = hashlib.sha256(f"{seed}/{label}/{step}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7], "little"))


def _tokens(batch: Batch) -> int:
    """Tokens of the batch: the schedule counts these."""
    return sum(tensor.numel() for name, tensor in batch.items() if name.startswith("inputs"))


def _accumulate(model: nn.Module, batch: Batch, loss: Loss, context: Context) -> tuple[float, dict[str, float]]:
    """Leave the gradient of the batch's mean loss on the model, one micro-batch at a time; the loss and its metrics."""
    rows = next(iter(batch.values())).shape[0]
    per_row = max(1, _tokens(batch) // rows)
    chunk = max(1, context.hardware.micro_batch_tokens // per_row)
    total, weight = 0.0, 0.0
    metrics: dict[str, float] = {}
    for start in range(0, rows, chunk):
        part = {name: tensor[start : start + chunk] for name, tensor in batch.items()}
        with autocast(context.hardware):
            output = loss(model, part)
        if not torch.isfinite(output.loss):
            raise ValueError("the loss is no longer finite: lower the learning rate (lr) of this step and run again")
        (output.loss * output.weight).backward()
        total, weight = total + float(output.loss.detach()) * output.weight, weight + output.weight
        for name, figure in output.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + figure * output.weight
    if weight > 0:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(weight)
    weight = weight or math.nan
    return total / weight, {name: figure / weight for name, figure in metrics.items()}


def _record(
    step: int, tokens: int, loss: float, metrics: dict[str, float], optimizer: RMSPropMomentum
) -> dict[str, float]:
    return {
        "step": step,
        "tokens": tokens,
        "loss": round(loss, 6),
        **{name: round(value, 6) for name, value in metrics.items()},
        "lr": optimizer.param_groups[0]["lr"] * optimizer.scale,
        "grad_norm": round(optimizer.grad_norm, 6),
        "skipped": optimizer.skipped,
    }


def write_curve(records: list[Record], folder: Path) -> None:
    """Write the curve as `metrics.jsonl`: no times, so that it is the same on every run."""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines)
