"""An ablation's table, figure and verdicts, out of what its step `measure` found (step `table` of recipes/ablations).

Seeds are the unit: every value is a mean over them with its t interval, every comparison the mean of differences
between runs of one seed with the t interval of those. A claim counts as shown where that interval lies beyond zero on
its side, as refuted where it lies on the other, and as open otherwise; "level" counts as shown where the interval
lies within a stated margin.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from openafm.reporting import plots
from openafm.reporting.markdown import table
from openafm.scoring import intervals
from openafm.stage import Config, Context, Metrics

Row = dict[str, Any]
Listed = tuple[list[str], list[list[str]], int]
"""A table: headings, rows, and the column from which on there are numbers."""
NAMES = {
    "bits_per_byte": "bits a byte", "top1": "top-1", "continuation": "continuations", "needle": "retrieval at depth",
    "loss_at": "nats at position", "end_loss": "end loss, nats", "sensitivity": "mean rise over the best, nats",
    "optimum": "best x, interpolated",
}  # fmt: skip
PERCENT = ("top1", "continuation", "needle")
"""Metrics told in percent; differences in points."""


class Claim(Config):
    """A comparison that the ablation was made for."""

    says: str
    """In words."""
    metric: str
    first: str
    """The arm that is to lie above, below, or level with `second`."""
    second: str
    relation: Literal["above", "below", "level"] = "above"
    within: float = 0.0
    """For "level": the margin, in the metric's unit."""


class AblationTableConfig(Config):
    """How the measurements are told."""

    title: str
    reported: str
    """What AFM reports."""
    metrics: list[str]
    """Columns, such as `bits_per_byte/web`."""
    claims: list[Claim] = []
    plot: str = ""
    """With `x`: the metric that is drawn over it. Without: the metric drawn an arm a line."""
    positions: list[str] = []
    """Metrics that are drawn as one line an arm, such as loss by position: their common beginnings."""
    panels: dict[str, list[str]] = {}
    """Arms that share a figure, by its name; all in one where empty."""
    x_label: str = ""
    bigger: str
    """What a bigger run would need."""


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its 95% interval; one seed has none."""

    value: float
    half: float | None
    n: int


def mean(values: Sequence[float]) -> Mean:
    """Mean of `values`, one a seed. Raises ValueError where there are none."""
    low, high = intervals.mean(values)
    return Mean(sum(values) / len(values), (high - low) / 2 if len(values) > 1 else None, len(values))


def ablation_table(
    config: AblationTableConfig, context: Context, *, measured: Path, coordinates: Path | None = None
) -> Metrics:
    """Write `table.md`, `results.json` (every model's figures and the verdicts) and `figure.svg`; with a coordinate
    check its slopes, and `coordinates.svg`.
    """
    result = json.loads((measured / "ablation.json").read_text())
    rows: list[Row] = result["rows"]
    chosen = [row for row in rows if row["metrics"]]
    verdicts = [verdict(claim, chosen) for claim in config.claims]
    parts = [f"# {config.title}", f"AFM: {config.reported}", seeds_of(result)]
    tables = [arms_table(config, result, chosen), sweep_table(result), claims_table(verdicts)]
    parts += ["\n".join(table(*found)) for found in tables if found]
    for name, arms in (config.panels or {"figure": result["arms"]}).items():
        if drawn := figure(config, result, arms):
            (context.out / f"{name}.svg").write_text(plots.standalone(drawn))
            parts.append(f"![{name}]({name}.svg)")
    checked = json.loads((coordinates / "coordinates.json").read_text()) if coordinates else None
    if checked:
        (context.out / "coordinates.svg").write_text(plots.standalone(movement_figure(checked)))
        parts += ["\n".join(table(*slopes_table(checked))), "![coordinate check](coordinates.svg)"]
    parts.append(f"A bigger run: {config.bigger}")
    (context.out / "table.md").write_text("\n\n".join(part for part in parts if part) + "\n")
    told = {
        "title": config.title,
        "reported": config.reported,
        "verdicts": verdicts,
        **result,
        **({"coordinates": checked} if checked else {}),
    }
    (context.out / "results.json").write_text(json.dumps(told, indent=1) + "\n")
    counts = {word: sum(v["verdict"] == word for v in verdicts) for word in ("shown", "open", "refuted")}
    return {"headline": ", ".join(f"{n} {word}" for word, n in counts.items() if n), **counts}


def value(row: Row, metric: str) -> float | None:
    """A model's figure: a measured one, or the loss at the end of its training."""
    found: float | None = row["end_loss"] if metric == "end_loss" else row["metrics"].get(metric)
    return found


def differences(rows: Sequence[Row], first: str, second: str, metric: str) -> list[float]:
    """`first` - `second` of each seed that both arms have."""
    sides: list[dict[int, float]] = []
    for arm in (first, second):
        found = {row["seed"]: value(row, metric) for row in rows if row["arm"] == arm}
        sides.append({seed: number for seed, number in found.items() if number is not None})
    return [sides[0][seed] - sides[1][seed] for seed in sorted(sides[0].keys() & sides[1].keys())]


def verdict(claim: Claim, rows: Sequence[Row]) -> dict[str, Any]:
    """The claim, its mean difference over seeds with the interval, and whether that shows it."""
    found = differences(rows, claim.first, claim.second, claim.metric)
    if not found:
        raise ValueError(f"claim {claim.says!r}: no seed has both arms {claim.first!r} and {claim.second!r}")
    told = mean(found)
    low, high = (told.value - told.half, told.value + told.half) if told.half is not None else (-1e9, 1e9)
    if claim.relation == "level":
        word = "shown" if -claim.within <= low and high <= claim.within else "open"
        word = "refuted" if low > claim.within or high < -claim.within else word
    else:
        sign = 1 if claim.relation == "above" else -1
        word = (
            "shown" if min(sign * low, sign * high) > 0 else "refuted" if max(sign * low, sign * high) < 0 else "open"
        )
    return {
        **claim.model_dump(), "verdict": word, "difference": told.value,
        "low": low if told.half is not None else None, "high": high if told.half is not None else None, "n": told.n,
    }  # fmt: skip


def _by_x(rows: Sequence[Row]) -> dict[float, list[Row]]:
    found: dict[float, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.get("x", 0)):
        found.setdefault(row.get("x", 0), []).append(row)
    return found


def seeds_of(result: Mapping[str, Any]) -> str:
    """What the values are means over."""
    seeds = sorted({row["seed"] for row in result["rows"]})
    return f"Means over {len(seeds)} seeds ({', '.join(map(str, seeds))}), ± the 95% t interval of the mean."


def arms_table(config: AblationTableConfig, result: Mapping[str, Any], chosen: Sequence[Row]) -> Listed:
    """One line an arm, at its best x where there is one."""
    costs = any(row["teacher_flops"] for row in chosen)
    headings = ["arm", *(["best " + result["x"]] if result["x"] else []), *map(_heading, config.metrics)]
    headings += ["cost, student", "with teacher"] if costs else ["cost"]
    lines = []
    for arm in result["arms"]:
        group = [row for row in chosen if row["arm"] == arm]
        if not group:
            lines.append([arm, *["diverged"] * (len(headings) - 1)])
            continue
        spent = [_flops(group[0]["student_flops"])]
        spent += [_flops(group[0]["student_flops"] + group[0]["teacher_flops"])] if costs else []
        at = [f"{group[0]['x']:g}"] if result["x"] else []
        lines.append([arm, *at, *(_cell(group, metric) for metric in config.metrics), *spent])
    return headings, lines, 1


def sweep_table(result: Mapping[str, Any]) -> Listed | None:
    """All values of x: the loss at the end of training, each seed's best x, and how many runs diverged."""
    if not result["x"]:
        return None
    xs = sorted({row["x"] for row in result["rows"]})
    lines = []
    for arm in result["arms"]:
        by_x = _by_x([row for row in result["rows"] if row["arm"] == arm])
        cells = [_sweep_cell(by_x.get(x, [])) for x in xs]
        seeds = sorted({row["seed"] for group in by_x.values() for row in group})
        bests = [_best_x(by_x, seed) for seed in seeds]
        lines.append([arm, *cells, ", ".join(f"{best:g}" for best in bests if best is not None)])
    return ["end loss at " + result["x"], *(f"{x:g}" for x in xs), "best, each seed"], lines, 1


def _sweep_cell(group: Sequence[Row]) -> str:
    if not group:
        return ""
    broken = sum(row["diverged"] for row in group)
    ended = [row["end_loss"] for row in group if not row["diverged"]]
    told = f"{sum(ended) / len(ended):.3f}" if ended else ""
    return told + (f" ({broken} of {len(group)} diverged)" if broken else "")


def _best_x(by_x: Mapping[float, Sequence[Row]], seed: int) -> float | None:
    ends = {
        x: row["end_loss"] for x, group in by_x.items() for row in group if row["seed"] == seed and not row["diverged"]
    }
    return min(ends, key=lambda x: ends[x]) if ends else None


def _cell(group: Sequence[Row], metric: str) -> str:
    found = [number for row in group if (number := value(row, metric)) is not None]
    if not found:
        return ""
    told, percent = mean(found), metric.startswith(PERCENT)
    if metric == "optimum":
        return f"{2**told.value:.4f}" + (f" ×/÷ {2**told.half:.1f}" if told.half is not None else "")
    scale, form = (100, ".1f") if percent else (1, ".3f")
    half = f" ± {told.half * scale:{form}}" if told.half is not None else ""
    return f"{told.value * scale:{form}}{half}{'%' if percent else ''}"


def claims_table(verdicts: Sequence[Mapping[str, Any]]) -> Listed | None:
    """One line a claim: the difference, its interval over seeds, the verdict."""
    if not verdicts:
        return None
    lines = []
    for v in verdicts:
        percent = v["metric"].startswith(PERCENT)
        scale, form, unit = (100, "+.2f", " points") if percent else (1, "+.4f", "")
        form, unit = ("+.2f", " doublings") if v["metric"] == "optimum" else (form, unit)
        ends = f" [{v['low'] * scale:{form}}, {v['high'] * scale:{form}}]" if v["low"] is not None else ""
        lines.append([
            v["says"], f"{v['first']} - {v['second']}, {_heading(v['metric'])}",
            f"{v['difference'] * scale:{form}}{unit}{ends}", v["verdict"],
        ])  # fmt: skip
    return ["claim", "difference", "mean over seeds [95%]", "verdict"], lines, 2


def figure(config: AblationTableConfig, result: Mapping[str, Any], arms: Sequence[str], name: str = "ablation") -> str:
    """Lines over x, or over positions, or a dot an arm; the interval over seeds beside each."""
    alt = f"{config.title}: {_heading(config.plot)}" if config.plot else config.title
    groups = {arm: [row for row in result["rows"] if row["arm"] == arm] for arm in arms}
    if config.positions:
        curves = {arm: _positions(group, config.positions[0]) for arm, group in groups.items()}
        return str(plots.lines(curves, config.x_label, _heading(config.positions[0]), name=name, alt=alt))
    if not config.plot:
        return ""
    if result["x"]:
        curves = {arm: _over_x(group, config.plot) for arm, group in groups.items()}
        drawn = {arm: curve for arm, curve in curves.items() if curve.x}
        label = config.x_label or result["x"]
        return str(plots.lines(drawn, label, _heading(config.plot), name=name, alt=alt, log=True))
    scale = 100 if config.plot.startswith(PERCENT) else 1
    dots = {}
    for arm, group in groups.items():
        found = mean([scale * number for row in group if (number := value(row, config.plot)) is not None])
        half = found.half or 0.0
        dots[arm] = plots.Dot(found.value, found.value - half, found.value + half)
    unit = ", %" if scale == 100 else ""
    return str(plots.points(dots, _heading(config.plot) + unit, name=name, alt=alt))


def _over_x(rows: Sequence[Row], metric: str) -> plots.Line:
    """Mean over seeds at each x, with the lowest and highest seed around it; where a run diverged the line ends."""
    x: list[float] = []
    y: list[float] = []
    low: list[float] = []
    high: list[float] = []
    for at, group in _by_x(rows).items():
        found = [number for row in group if (number := value(row, metric)) is not None and not row["diverged"]]
        if found:
            x.append(at)
            y.append(sum(found) / len(found))
            low.append(min(found))
            high.append(max(found))
    return plots.Line(x, y, low, high)


def _positions(rows: Sequence[Row], beginning: str) -> plots.Line:
    """Mean over seeds of each metric `beginning/LOW-HIGH` or `beginning/DEPTH`, with the lowest and highest seed."""
    names = sorted(name for name in rows[0]["metrics"] if name.startswith(f"{beginning}/"))
    found = [[row["metrics"][name] for row in rows] for name in names]
    x = [_middle(name.partition("/")[2]) for name in names]
    return plots.Line(x, [sum(v) / len(v) for v in found], [min(v) for v in found], [max(v) for v in found])


def _middle(label: str) -> float:
    """The middle of "0256-0512", or the depth "0.5"."""
    ends = [float(end) for end in label.split("-")]
    return sum(ends) / len(ends)


def slopes_table(checked: Mapping[str, Any]) -> Listed:
    """Slope of movement over width of each activation: the mean over seeds, and the lowest and highest of them."""
    kinds = checked["movement"]
    lines = []
    for place in next(iter(kinds.values())):
        found = [kinds[kind][place] for kind in kinds]
        cells = [f"{row['slope']:+.2f} ({min(row['slopes']):+.2f} to {max(row['slopes']):+.2f})" for row in found]
        lines.append([place, *cells])
    return ["slope of movement over width", *kinds], lines, 1


def movement_figure(checked: Mapping[str, Any], name: str = "coordinates") -> str:
    """How far the last activations move, over width, in each parametrisation."""
    places = list(next(iter(checked["movement"].values())))[-3:]
    curves = {
        f"{place}, {kind.partition(' ')[0]}": plots.Line(checked["widths"], rows[place]["mean"])
        for kind, rows in checked["movement"].items()
        for place in places
    }
    drawn = plots.lines(curves, "width", "RMS change", name=name, alt="movement over width", log=True)
    return str(drawn)


def _heading(metric: str) -> str:
    name, _, part = metric.partition("/")
    return NAMES.get(name, name) + (f", {part}" if part and part != "all" else "")


def _flops(count: float) -> str:
    return f"{count / 1e12:.1f} TFLOP"
