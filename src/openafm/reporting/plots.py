"""Figures of the report as inline SVG: the same bytes for the same data, in the page's own colours.

Matplotlib draws with placeholder colours, which become `currentColor` and the page's CSS variables, so that one figure
suits light and dark. Text stays text, so that it can be read aloud, searched and scaled.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas

INK, FAINT = "#010203", "#010204"
SERIES = tuple(f"#01020{digit}" for digit in "56789a")
WIDTH = 5.8
"""Inches: small enough that a phone's reader can read the labels."""

_STYLE: Any = {
    "svg.hashsalt": "openafm",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.4,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Line:
    """One curve; `low` and `high` shade its 95% interval where given."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = field(default=())
    high: Sequence[float] = field(default=())


def lines(
    curves: Mapping[str, Line],
    x_label: str,
    y_label: str,
    *,
    name: str,
    height: float = 2.8,
    chance: float | None = None,
) -> Markup:
    """Curves with a legend above them, `chance` a dotted line; `name` sets the figure's ids apart from others'."""
    with matplotlib.rc_context(_STYLE):
        canvas, axes = _canvas(height)
        for index, (label, curve) in enumerate(curves.items()):
            colour, dash = SERIES[index % len(SERIES)], ("-", "--", ":")[index // len(SERIES) % 3]
            marker = "o" if len(curve.x) < 12 else None
            axes.plot(curve.x, curve.y, dash, color=colour, label=_plain(label), marker=marker, markersize=3)
            if curve.low:
                axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if chance is not None:
            axes.axhline(chance, color=INK, linewidth=0.8, linestyle=":")
        if len(curves) > 1:
            canvas.legend(loc="outside upper left", ncols=4, fontsize=8)
        return _svg(canvas, name)


def points(
    values: Mapping[str, tuple[float, float | None, float | None]], x_label: str, *, name: str, mark: float
) -> Markup:
    """One line a label: a dot at the value, a bar over its 95% interval; `mark` is chance or no difference."""
    with matplotlib.rc_context(_STYLE):
        canvas, axes = _canvas(0.7 + 0.24 * len(values))
        for row, (value, low, high) in enumerate(values.values()):
            if low is not None and high is not None:
                axes.plot([low, high], [row, row], "-", color=SERIES[0], linewidth=2, alpha=0.5)
            axes.plot([value], [row], "o", color=SERIES[0], markersize=4.5)
        axes.axvline(mark, color=INK, linewidth=0.8, linestyle=":")
        _label_rows(axes, list(values), x_label)
        return _svg(canvas, name)


def bars(parts: Mapping[str, Mapping[str, float]], x_label: str, *, name: str) -> Markup:
    """Horizontal bars, one a label, each stacked of named parts."""
    with matplotlib.rc_context(_STYLE):
        canvas, axes = _canvas(0.8 + 0.24 * len(parts))
        names = list(dict.fromkeys(part for stack in parts.values() for part in stack))
        starts = [0.0] * len(parts)
        for index, part in enumerate(names):
            widths = [stack.get(part, 0.0) for stack in parts.values()]
            colour = SERIES[index % len(SERIES)]
            axes.barh(range(len(parts)), widths, 0.66, starts, color=colour, label=_plain(part), linewidth=0)
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
        _label_rows(axes, list(parts), x_label)
        if len(names) > 1:
            canvas.legend(loc="outside upper left", ncols=6, fontsize=8, columnspacing=1.2)
        return _svg(canvas, name)


def _canvas(height: float) -> tuple[Canvas, Axes]:
    canvas = Canvas(figsize=(WIDTH, height))
    FigureCanvasSVG(canvas)
    return canvas, canvas.add_subplot()


def _label_rows(axes: Axes, labels: list[str], x_label: str) -> None:
    axes.set_yticks(range(len(labels)), [_plain(label) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(x_label)


def _plain(label: str) -> str:
    """A label as it is: `$` would start a formula, a leading `_` would hide it from the legend."""
    return label.replace("$", r"\$").lstrip("_")[:60]


def _svg(canvas: Canvas, name: str) -> Markup:
    """The drawing as an SVG element without size, date, or ids that another figure could have."""
    file = io.StringIO()
    canvas.savefig(
        file, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Type": None, "Format": None}
    )
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'^(<svg[^>]*?) height="[^"]*"', r"\1", text)
    text = re.sub(r'^(<svg[^>]*?) width="[^"]*"', r'\1 role="img" aria-label="' + name + '"', text)
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    for index, colour in enumerate(SERIES):
        text = text.replace(colour, f"var(--c{index})")
    return Markup(text.replace(INK, "currentColor").replace(FAINT, "var(--line)"))
