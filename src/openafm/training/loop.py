"""The one training loop: data + loss + schedule, for every stage.

A stage hands over batches, a loss and an optimizer; the loop resumes from its checkpoint in `context.scratch`, so a
killed stage ends with the bytes of an unbroken one. Randomness (dropout) is seeded anew for each step. Under torchrun
the same call trains on many devices (openafm.training.parallel).
"""

import hashlib
import json
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from openafm.stage import Context, Hardware
from openafm.training.batches import Batch, Batches
from openafm.training.checkpoints import Checkpoints, Position
from openafm.training.hardware import autocast, compile_blocks, plain_blocks
from openafm.training.losses import LossOutput
from openafm.training.optimizers import ClippedOptimizer
from openafm.training.parallel import COMPARED, Devices, rank
from openafm.training.schedules import Schedule

Loss = Callable[[Any, Batch], LossOutput]
Record = dict[str, float]

PATIENCE = 20
"""Skipped steps in a row that end the run: the state is frozen meanwhile, so nothing will change any more."""
WINDOW = 50
"""Steps that a jump of the loss is measured against; fewer at a run's beginning, but ten."""
HIGH = 6
"""Steps in a row that have to be high."""
TOLD = 20
"""Alarms shown as warnings; the notes keep all."""


def train(
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    optimizer: ClippedOptimizer,
    schedule: Schedule,
    context: Context,
    *,
    label: str = "train",
    log_every: int = 10,
    checkpoint_seconds: float = 20.0,
    before_step: Callable[[Any, int], None] | None = None,
    snapshot: Callable[[int], None] | None = None,
    snapshots: Sequence[int] = (),
) -> list[Record]:
    """Train `model` over all of `batches`; the curve, a record every `log_every` steps and at the end.

    `schedule` maps tokens seen to the factor of learning rate and decay. `before_step(network, step)` may anneal what
    the network holds; `snapshot(step)`, after each of `snapshots`, has to write into `context.scratch`: a resumed run
    does not pass it again. Steps of wild or infinite gradients are skipped and told, too many raise DivergedError.
    """
    model.to(context.hardware.device).train()
    devices = Devices(model, loss, optimizer, context.hardware, context.parallelism)
    checkpoints = Checkpoints((context.shared or context.scratch) / label, devices.network, optimizer)
    at = checkpoints.load(context.warn)
    watch = Watch(at.alarms, context.warn, label, at.records)
    blocks = compile_blocks(model, len(batches) * _tokens(batches[0]), context.hardware) if devices.mesh is None else []
    started, resumed = time.monotonic(), at.tokens
    try:
        while at.step < len(batches):
            if before_step is not None:
                before_step(devices.network, at.step)
            _seed(context.seed, label, at.step, devices.mesh.stream if devices.mesh else 0)
            batch = batches[at.step]
            at.step, at.tokens = at.step + 1, at.tokens + _tokens(batch)
            optimizer.scale = schedule(at.tokens)
            value, metrics, due = _accumulate(devices, batch, context.hardware, checkpoints.due(checkpoint_seconds))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            watch.look(at.step, value, optimizer)
            if at.step in snapshots and snapshot is not None:
                devices.collect()
                snapshot(at.step)  # which may end the batches here
                due = True  # a checkpoint must not be older than a snapshot
            last = at.step == len(batches)
            if (at.step % log_every == 0 or last) and math.isfinite(value):
                at.records.append(_record(at, value, metrics, optimizer))
                context.log(label, at.step, at.records[-1])
            if due or last or at.step % COMPARED == 0:
                devices.compare(at.step, batch, value)
            if due or last:
                checkpoints.save(at)
            context.report(f"{label} loss {value:.3f}", at.step, len(batches))
        checkpoints.wait()
    finally:
        checkpoints.close()
        plain_blocks(blocks)
    devices.end()
    model.eval()
    return _curve(context, label, at, at.tokens - resumed, time.monotonic() - started)


def _curve(context: Context, label: str, at: Position, tokens: int, seconds: float) -> list[Record]:
    """The curve; speed and alarms become notes, outside every digest. Raises ValueError where no loss was finite."""
    if not at.records:
        raise ValueError(f"no step of {label} had a finite loss: lower the learning rate (lr) of this step")
    if tokens:
        context.note(**{f"{label}_tokens_per_second": round(tokens / seconds, 1)})
    if at.alarms:
        context.note(**{f"{label}_alarms": at.alarms})
    return at.records


def jumped(losses: Sequence[float]) -> bool:
    """Whether the last `HIGH` losses are above all before them but one in 25, and by a tenth of the usual loss.

    Single batches may be as high as they like: of losses from one distribution, whatever its tails, the last six of 56
    are all above the third highest of the others once in C(56, 6) / C(8, 6), 1.2 million steps.
    """
    before, last = sorted(losses[:-HIGH]), losses[-HIGH:]
    if len(before) < 10:
        return False
    usual = statistics.median(before)
    return min(last) > before[-1 - len(before) // 25] and statistics.median(last) - usual > 0.1 * abs(usual)


class DivergedError(ValueError):
    """Training broke off: its gradients are no longer of use. `records` holds the curve so far."""

    def __init__(self, message: str, records: Sequence[Record]):
        super().__init__(message)
        self.records = records


class Watch:
    """Tells of skipped steps, of batches without a target and of jumps of the loss; `alarms` keeps what was told."""

    def __init__(
        self, alarms: list[dict[str, Any]], warn: Callable[[str], None], label: str, records: Sequence[Record] = ()
    ):
        self.alarms, self.warn, self.label, self.records = alarms, warn, label, records
        self.recent: deque[float] = deque(maxlen=WINDOW + HIGH)
        self.in_a_row = 0

    def look(self, step: int, loss: float, optimizer: ClippedOptimizer) -> None:
        """Judge the step just taken. Raises DivergedError when `PATIENCE` steps in a row were skipped."""
        norm = optimizer.grad_norm
        if not norm < optimizer.skip_norm:
            self.in_a_row += 1
            self._tell(step, "skipped", loss, f"step {step} was skipped: loss {loss:.3f}, gradient norm {norm:.3g}")
            if self.in_a_row == PATIENCE:
                raise DivergedError(
                    f"{PATIENCE} steps of {self.label} in a row were skipped, their gradients being not finite or of "
                    f"norm {optimizer.skip_norm:.0f} and more: lower the learning rate (lr) of this step and run again",
                    self.records,
                )
            return
        self.in_a_row = 0
        if not math.isfinite(loss):
            self._tell(step, "empty", loss, f"step {step} had no target to learn from: look at this step's data")
            return
        self.recent.append(loss)
        losses = list(self.recent)
        if jumped(losses):
            now, usual = statistics.median(losses[-HIGH:]), statistics.median(losses[:-HIGH])
            self._tell(step, "jump", now, f"step {step}: the loss jumped to about {now:.3f} from about {usual:.3f}")
            self.recent.clear()  # each jump is told once

    def _tell(self, step: int, kind: str, loss: float, message: str) -> None:
        self.alarms.append({"step": step, "alarm": kind, "loss": round(loss, 6) if math.isfinite(loss) else None})
        if len(self.alarms) <= TOLD:
            self.warn(f"{self.label}: {message}")


def _seed(seed: int, label: str, step: int, number: int) -> None:
    """Dropout's draws: of this step, and of this process where others hold other tokens."""
    text = f"{seed}/{label}/{step}" + (f"/{number}" if number else "")
    torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "little"))


def _tokens(batch: Batch) -> int:
    """Tokens of the batch: the schedule counts these."""
    return sum(tensor.numel() for name, tensor in batch.items() if name.startswith("inputs"))


def _accumulate(devices: Devices, batch: Batch, hardware: Hardware, due: bool) -> tuple[float, dict[str, float], bool]:
    """Leave the gradient of the batch's mean loss on the network, one micro-batch at a time; the loss and its metrics.

    `due` is rank 0's word whether a checkpoint is to be written now, and comes back as all processes know it.
    """
    mine = {name: tensor.to(hardware.device) for name, tensor in devices.share(batch).items()}
    rows = next(iter(mine.values())).shape[0]
    per_row = max(1, _tokens(mine) // rows)
    chunk = max(1, hardware.micro_batch_tokens // per_row)
    total, weight = 0.0, 0.0
    metrics: dict[str, float] = {}
    for start in range(0, rows, chunk):
        part = {name: tensor[start : start + chunk] for name, tensor in mine.items()}
        with autocast(hardware):
            output = devices.evaluate(part)
        (output.loss * output.weight).backward()
        total, weight = total + float(output.loss.detach()) * output.weight, weight + output.weight
        for name, figure in output.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + figure * output.weight
    total, weight, asked, *figures = devices.add([total, weight, float(due and rank() == 0), *metrics.values()])
    if weight > 0:
        devices.divide_gradients(weight)
    weight = weight or math.nan
    means = {name: figure / weight for name, figure in zip(metrics, figures, strict=True)}
    return total / weight, means, asked > 0


def _record(at: Position, loss: float, metrics: dict[str, float], optimizer: ClippedOptimizer) -> Record:
    return {
        "step": at.step,
        "tokens": at.tokens,
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
