"""What a run says of itself while it runs, for who looks on (`openafm status RUN --watch`): RUN/.live.json.

The file is replaced, never written over, so a reader finds it whole at any moment; at most twice a second, since what
changes in between nobody sees. It is no part of any artifact and goes when the run ends; a killed run leaves it, and
the process it names tells that.
"""

import json
import os
import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from numbers import Real
from pathlib import Path
from typing import Any

import psutil

NAME = ".live.json"
PAUSE = 0.5
"""Seconds between two writings."""
POINTS = 64
"""Losses kept for the small curve; a longer one is thinned to every other point."""


class Live:
    """The record of one run at work; the runner tells it what happens."""

    def __init__(self, folder: Path, steps: Iterable[tuple[str, float, bool]]):
        """`steps`: name, planned seconds, and whether it is current; in order."""
        self.path = folder / NAME
        self.written = 0.0
        self.record: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "born": psutil.Process().create_time(),
            "started": time.time(),
            "steps": {
                name: {"state": "current" if current else "waiting", "planned": planned, "seconds": None, "told": ""}
                for name, planned, current in steps
            },
            "now": None,
        }
        self._write()

    def begin(self, name: str) -> None:
        """A step starts."""
        self.record["steps"][name]["state"] = "running"
        self.record["now"] = {
            "step": name, "since": time.time(), "label": "", "done": 0.0, "total": None, "pace": None,
            "values": {}, "losses": [], "every": 1, "skipped": 0,
        }  # fmt: skip
        self.from_: tuple[str, float, float] | None = None
        self.last: tuple[str, float, float] | None = None
        self._write()

    def report(self, label: str, done: float, total: float | None) -> None:
        """What the step reports (`context.report`); its pace is that since the count last began anew."""
        now, at = self.record["now"], time.time()
        if now is None:
            return
        if self.from_ is None or done < now["done"] or total != now["total"]:
            self.from_ = ("", done, at)
        _, first, since = self.from_
        pace = (done - first) / (at - since) if done > first and at > since else None
        now |= {"label": label, "done": done, "total": total, "pace": pace}
        self._write(hurry=False)

    def log(self, label: str, step: int, values: Mapping[str, Any]) -> None:
        """A point of a training curve (`context.log`)."""
        now, at = self.record["now"], time.time()
        if now is None:
            return
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, Real)}
        if "tokens" in numbers:
            if self.last and self.last[0] == label and at > self.last[2]:
                numbers["tokens_per_second"] = (numbers["tokens"] - self.last[1]) / (at - self.last[2])
            self.last = (label, numbers["tokens"], at)
        now["values"] = numbers
        if "loss" in numbers:
            self._keep(numbers["loss"])
        self._write(hurry=False)

    def _keep(self, loss: float) -> None:
        """The loss for the curve, which always spans the whole step."""
        now = self.record["now"]
        now["skipped"] += 1
        if now["skipped"] < now["every"]:
            return
        now["skipped"] = 0
        now["losses"].append(round(loss, 4))
        if len(now["losses"]) > POINTS:
            now["losses"], now["every"] = now["losses"][::2], 2 * now["every"]

    def end(self, name: str, seconds: float, told: str) -> None:
        """A step is over; `seconds` 0 where it was current or taken over."""
        state = "done" if seconds else "current"
        self.record["steps"][name] |= {"state": state, "seconds": seconds or None, "told": told}
        self.record["now"] = None
        self._write()

    def close(self) -> None:
        """The run is over."""
        self.path.unlink(missing_ok=True)

    def _write(self, hurry: bool = True) -> None:
        """Replace the file; a disk that is full or read-only is the step's to tell of, not this file's."""
        if not hurry and time.monotonic() - self.written < PAUSE:
            return
        self.written = time.monotonic()
        beside = self.path.with_name(f"{NAME}.new")
        with suppress(OSError):
            beside.write_text(json.dumps(self.record | {"heard": time.time()}))
            beside.replace(self.path)


def read(folder: Path) -> dict[str, Any] | None:
    """What the run in `folder` last said of itself; None where none is at work, or has ended."""
    try:
        record: dict[str, Any] = json.loads((folder / NAME).read_text())
    except FileNotFoundError:
        return None
    return record


def at_work(record: Mapping[str, Any]) -> bool:
    """Whether the process of `record` still runs; one on another machine is believed to."""
    if record["host"] != socket.gethostname():
        return True
    try:
        process = psutil.Process(record["pid"])
        age: float = process.create_time() - record["born"]
        return abs(age) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
