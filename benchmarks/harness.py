"""What every benchmark shares: contestants run in turn, a table of medians and spread, one JSON line.

Contestants alternate within one run, so that a machine whose speed drifts slows all of them alike.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def options(description: str | None, **defaults: int | float | str) -> argparse.Namespace:
    """Parse the benchmark's own options (each with a default) and the common `--json` and `--repeats`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the result as one last line of JSON")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, each runs every contestant once")
    for name, default in defaults.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"default {default}"
        )
    return parser.parse_args()


def timed(work: Callable[[], Any]) -> float:
    """Seconds one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def alternate(contestants: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Figures of each contestant, `repeats` of them, measured in turn after one uncounted warm-up."""
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for round_number in range(repeats + 1):
        for name, measure in contestants.items():
            figure = measure()
            if round_number:
                figures[name].append(figure)
    return figures


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:  # noqa: PTH123
            model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        model = platform.machine()
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.system(), "python": platform.python_version()}


def show(
    name: str,
    unit: str,
    figures: dict[str, list[float]],
    *,
    limit: float | None,
    limit_is: str = "",
    detail: dict[str, Any] | None = None,
    as_json: bool = False,
    better: str = "more",
    keep: str = "",
) -> None:
    """Print medians, spread and ratios; the first contestant is ours, the others are peers.

    `better` is "more" or "less"; ratios above 1 always mean that ours is ahead. `keep` is the folder of a run whose
    report is to show the result.
    """
    medians = {contestant: statistics.median(values) for contestant, values in figures.items()}
    ours_name = next(iter(figures))
    ours = medians[ours_name]
    table = Table(title=f"{name} [{unit}, {better} is better]")
    for column in ("contestant", "median", "min", "max", "ours is ahead by"):
        table.add_column(column, justify="left" if column == "contestant" else "right")
    for contestant, values in figures.items():
        ratio = ours / medians[contestant] if better == "more" else medians[contestant] / ours
        row = [contestant, *(f"{v:,.4g}" for v in (medians[contestant], min(values), max(values)))]
        table.add_row(*row, "" if contestant == ours_name else f"{ratio:.2f}x")
    if limit is not None:
        share = ours / limit if better == "more" else limit / ours
        table.add_row(f"limit: {limit_is}", f"{limit:,.4g}", "", "", f"{share:.0%} of it")
    Console().print(table)
    peers = {contestant: value for contestant, value in medians.items() if contestant != ours_name}
    line = {"name": name, "unit": unit, "ours": ours, "peers": peers, "limit": limit}
    line |= {"detail": detail or {}, "machine": machine()}
    if as_json:
        print(json.dumps(line))
    if keep:
        folder = Path(keep) / "benchmarks"
        folder.mkdir(exist_ok=True)
        command = shlex.join(["openafm", "bench", Path(sys.argv[0]).stem, *sys.argv[1:]])
        path = folder / f"{name}.json"
        path.write_text(json.dumps(line | {"figures": figures, "command": command}, indent=1) + "\n")
        print(f"kept in {path}: `openafm report` shows it")
