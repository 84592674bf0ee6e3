"""What every stage is handed: where to write, what to resume from, the seed and the machine.

A stage is a function `stage(config, context, *, named_input: Path, ...) -> metrics`. It reads its inputs, writes one
artifact into `context.out` and returns metrics (plain JSON values, equal on every run with the same inputs). Times and
rates differ between runs, so they go to `context.note` and stay outside the digests.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Item = TypeVar("Item")
Metrics = dict[str, Any]


class Config(BaseModel):
    """Base of every stage's configuration: unknown keys are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Hardware:
    """The probe's choices, fixed at a run's first start so that a resumed run computes the same bytes."""

    device: str = "cpu"
    threads: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    micro_batch_tokens: int = 8192
    """Largest number of tokens in one forward and backward pass; larger batches accumulate gradients."""
    compile: bool = False
    """Whether long training steps compile their blocks (openafm.training.hardware.compile_blocks)."""


class Parallelism(Config):
    """How many processes (torchrun) share a training step, and how. One process: all 1.

    It changes no result but by the order of sums, so it stays outside a step's key: a killed step goes on from its
    checkpoint on other devices too.
    """

    replicate: int = Field(default=1, ge=1)
    """Copies of the sharded model, each with rows of its own (HSDP): one a node, say."""
    shard: int = Field(default=0, ge=0)
    """Processes over which weights, gradients, optimizer state and rows are split (FSDP2); 0: all that are left."""
    tensor: int = Field(default=1, ge=1)
    """Processes that share every linear layer of a block (tensor parallelism)."""
    context: int = Field(default=1, ge=1)
    """Processes that share every sequence (context parallelism)."""
    recompute: bool = False
    """Run each layer again in the backward pass instead of keeping its activations, also on one process."""


def _silent(label: str, done: float, total: float | None) -> None:
    """Report progress to nobody (tests and library use)."""


def _unseen(label: str, step: int, values: Mapping[str, float]) -> None:
    """Show points of curves to nobody."""


def _to_stderr(message: str) -> None:
    """Warn where no runner listens."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


@dataclass
class Context:
    """Where a stage writes, and what it may rely on."""

    out: Path
    """The new artifact's folder; it becomes visible to others only when the stage has returned."""
    scratch: Path
    """Survives a kill: checkpoints and partial work of this very step. Deleted when the step is done."""
    seed: int = 0
    hardware: Hardware = Hardware()
    report: Callable[[str, float, float | None], None] = _silent
    """`report(label, done, total)` moves the progress bar."""
    warn: Callable[[str], None] = _to_stderr
    """`warn(message)` tells the user what went wrong without ending the step."""
    parallelism: Parallelism = field(default_factory=Parallelism)
    shared: Path | None = None
    """Where processes under torchrun keep what they write together (checkpoints); alone it is `scratch`."""
    log: Callable[[str, int, Mapping[str, float]], None] = _unseen
    """`log(label, step, values)` shows a point of a curve to whoever looks on while the step runs."""
    notes: dict[str, Any] = field(default_factory=dict)

    def note(self, **measured: Any) -> None:
        """Keep times, rates and memory: shown in the report, outside every digest."""
        self.notes.update(measured)

    def track(self, items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
        """Yield `items` while the progress bar moves."""
        if total is None and hasattr(items, "__len__"):
            total = len(items)  # type: ignore[arg-type]
        for done, item in enumerate(items):
            self.report(label, done, total)
            yield item
        self.report(label, total or 0, total)
