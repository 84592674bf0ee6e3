"""What every stage is handed: where to write, what to resume from, the seed and the machine.

A stage is a function `stage(config, context, *, named_input: Path, ...) -> metrics`. It reads its inputs, writes one
artifact into `context.out` and returns metrics (plain JSON values, equal on every run with the same inputs). Times and
rates differ between runs, so they go to `context.note` and stay outside the digests.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

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


def _silent(label: str, done: float, total: float | None) -> None:
    """Report progress to nobody (tests and library use)."""


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
