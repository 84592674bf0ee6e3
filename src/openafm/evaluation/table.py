"""The stage table: one line a stage of the recipe, as the terminal shows it at the end and the report prints it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from openafm.evaluation.intervals import Estimate

FLOWS = ("web", "code", "math")


@dataclass(frozen=True)
class Row:
    """One evaluated model."""

    step: str
    model: str
    parameters: int
    estimates: dict[str, Estimate] = field(default_factory=dict)
    samples: list[dict[str, str]] = field(default_factory=list)


def stage_table(evaluations: Mapping[str, Path]) -> list[Row]:
    """Read the `evaluation.json` of each step that has run, in the order given."""
    return [read_row(step, folder) for step, folder in evaluations.items() if (folder / "evaluation.json").exists()]


def read_row(step: str, folder: Path) -> Row:
    """One artifact of stage `evaluate`."""
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    estimates = {r["metric"]: Estimate(r["value"], r["low"], r["high"], r["n"]) for r in found["rows"]}
    return Row(step, found["model"], found["parameters"], estimates, found["samples"])


def columns(rows: list[Row]) -> list[tuple[str, str]]:
    """Metric and heading of the columns: the main flows' bits per byte, top-1, tasks; only those anybody has."""
    wanted = [(f"bits_per_byte/{flow}", f"bits/byte\n{flow}") for flow in FLOWS]
    wanted += [("top1/all", "top-1\n%"), ("task/all", "tasks\n%")]
    return [(metric, heading) for metric, heading in wanted if any(metric in row.estimates for row in rows)]


def cell(metric: str, estimate: Estimate | None) -> tuple[str, str]:
    """Value and half interval as printed: bits to two decimals, shares in percent; Wilson's interval as its ends."""
    if estimate is None:
        return "–", ""
    scale, digits = (1, 2) if metric.startswith(("bits_per_byte/", "loss_at/")) else (100, 1)
    value = f"{estimate.value * scale:.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return value, "n = 1"
    if metric.startswith(("task/", "needle")):
        return value, f"{estimate.low * scale:.0f}–{estimate.high * scale:.0f}"
    return value, f"±{(estimate.high - estimate.low) / 2 * scale:.{digits}f}"


def render(rows: list[Row]) -> Table:
    """The table for the terminal; each value is followed by its 95% interval, each column by its n."""
    shown = columns(rows)
    title = "After each stage, on held-out text and problems (95% intervals)"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("stage", no_wrap=True)
    table.add_column("weights", justify="right", no_wrap=True)
    for _, heading in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = (" ".join(cell(metric, row.estimates.get(metric))).strip() for metric, _ in shown)
        table.add_row(escape(row.model), f"{row.parameters / 1e6:.2f}M", *cells)
    table.add_row("n", "", *(_counts(metric, rows) for metric, _ in shown))
    return table


def _counts(metric: str, rows: list[Row]) -> str:
    """How many windows or problems a column's values rest on."""
    counts = sorted({row.estimates[metric].n for row in rows if metric in row.estimates})
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
