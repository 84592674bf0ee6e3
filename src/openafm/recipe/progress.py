"""Progress of a run: bars on a terminal, a line at most every ten seconds anywhere else."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from openafm.recipe.board import Board
    from openafm.recipe.live import Live

QUIET_SECONDS = 10.0
"""Between two lines when there is no terminal."""


class Display:
    """Two bars: the whole run in planned seconds, and what the current step reports.

    `live` and `board` are told the same, for who looks on from elsewhere.
    """

    def __init__(self, console: Console, planned: dict[str, float], board: "Board | None" = None):
        self.console = console
        self.live: Live | None = None
        self.board = board
        self.planned = {name: seconds or 1.0 for name, seconds in planned.items()}
        self.total = sum(self.planned.values())
        self.done, self.spent = 0.0, 0.0
        self.name, self.started, self.printed = "", time.monotonic(), time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self.bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.whole = self.bars.add_task("run", total=self.total, text="")
        self.part = self.bars.add_task("", total=None, text="", visible=False)

    def __enter__(self) -> "Display":
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()
        if self.board:
            self.board.end()
        if self.live:
            self.live.close()

    def begin(self, name: str) -> None:
        """A step starts."""
        self.name, self.started = name, time.monotonic()
        if self.live:
            self.live.begin(name)
        self.bars.reset(self.part, description=name, total=None, visible=True, text="")
        self.report("", 0, None)

    def end(self, name: str, seconds: float, told: str = "") -> None:
        """A step is over, or was current (`seconds` 0); `told` is what it says of itself."""
        if self.live:
            self.live.end(name, seconds, told)
        if self.board:
            self.board.end()
        self.done += self.planned[name]
        self.spent += seconds
        self.name = ""
        self.bars.update(self.part, visible=False)
        self.bars.update(self.whole, completed=self.done, text=self._times(0.0))

    def report(self, label: str, done: float, total: float | None) -> None:
        """What a step says of itself: `context.report`."""
        if self.live:
            self.live.report(label, done, total)
        seconds = time.monotonic() - self.started
        share = min(1.0, done / total) if total else min(1.0, seconds / self.planned.get(self.name, 1.0))
        completed = self.done + share * self.planned.get(self.name, 0.0)
        self.bars.update(self.part, completed=done, total=total, text=label)
        self.bars.update(self.whole, completed=completed, text=self._times(seconds))
        if label and not self.console.is_terminal and time.monotonic() - self.printed > QUIET_SECONDS:
            self.printed = time.monotonic()
            counted = f" {done:g}/{total:g}" if total else ""
            self.console.print(
                f"  {self.name}: {label}{counted}  [{completed / self.total:.0%} of the run]", markup=False
            )

    def log(self, label: str, step: int, values: Mapping[str, Any]) -> None:
        """A point of a training curve: `context.log`."""
        if self.live:
            self.live.log(label, step, values)
        if self.board:
            self.board.log(self.name, label, step, values)

    def line(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _times(self, current: float) -> str:
        return f"{clock(self.spent + current)} spent, {clock(self.total)} planned in all"


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
