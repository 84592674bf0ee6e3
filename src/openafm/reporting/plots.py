"""Figures of the report as inline SVG: the same bytes for the same data, in the page's own colours.

Matplotlib draws with placeholder colours, which become `currentColor` and the page's CSS variables, so that one figure
suits light and dark. Text stays text, so that it can be read aloud, searched and scaled.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator, NullLocator

INK, FAINT, PAGE = "#010203", "#010204", "#01020b"
SERIES = tuple(f"#01020{digit}" for digit in "56789a")
LIGHT = ("#2f6db0", "#c2621b", "#3a8a4d", "#8755a8", "#b83a52", "#767b82")
"""The page's light colours of the series, for a figure that stands alone."""
WIDTH = 4.0
"""Inches: on a phone, which shows the figure at about this width, labels are as large as in print."""

_STYLE: Any = {
    "svg.hashsalt": "openafm",
    "svg.fonttype": "none",
    "font.size": 8.5,
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
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Dot:
    """One value and the ends of its 95% interval, where there are any; a control is drawn in another colour."""

    value: float
    low: float | None = None
    high: float | None = None
    control: bool = False


def lines(
    curves: Mapping[str, Line],
    x_label: str,
    y_label: str,
    *,
    name: str,
    alt: str,
    height: float = 2.6,
    chance: float | None = None,
    log: bool = False,
) -> Markup:
    """Curves with a legend above them, `chance` a dotted line, `log` a logarithmic x axis with a tick a point; `name`
    sets the figure's ids apart from others'.
    """
    with matplotlib.rc_context(_STYLE):
        columns = max(1, min(3, 54 // max(map(len, curves), default=1)))
        canvas, axes = _canvas(height + 0.16 * -(-len(curves) // columns))
        for index, (label, curve) in enumerate(curves.items()):
            colour, dash = SERIES[index % len(SERIES)], ("-", "--", ":")[index // len(SERIES) % 3]
            marker = "o" if len(curve.x) < 12 else None
            axes.plot(curve.x, curve.y, dash, color=colour, label=_plain(label), marker=marker, markersize=3)
            if curve.low:
                axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if log:
            axes.set_xscale("log")
            axes.set_xticks(sorted({x for curve in curves.values() for x in curve.x}))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_locator(NullLocator())
        if chance is not None:
            axes.axhline(chance, color=INK, linewidth=0.8, linestyle=":")
        if len(curves) > 1:
            canvas.legend(loc="outside upper left", ncols=columns, fontsize=8, columnspacing=1.2, handlelength=1.5)
        return _svg(canvas, name, alt)


def points(dots: Mapping[str, Dot], x_label: str, *, name: str, alt: str, mark: float | None = None) -> Markup:
    """One line a label: a dot at the value, a bar over its interval; `mark` is chance or no difference."""
    with matplotlib.rc_context(_STYLE):
        canvas, axes = _canvas(0.6 + 0.22 * len(dots))
        for row, dot in enumerate(dots.values()):
            colour = SERIES[1 if dot.control else 0]
            if dot.low is not None and dot.high is not None:
                axes.plot([dot.low, dot.high], [row, row], "-", color=colour, linewidth=2.4, alpha=0.45)
            axes.plot([dot.value], [row], "D" if dot.control else "o", color=colour, markersize=4.5)
        if mark is not None:
            axes.axvline(mark, color=INK, linewidth=0.8, linestyle=":")
        _label_rows(axes, list(dots), x_label)
        return _svg(canvas, name, alt)


def bars(
    parts: Mapping[str, Mapping[str, float]], x_label: str, *, name: str, alt: str, stacked: bool = True
) -> Markup:
    """Horizontal bars, one a label, of named parts: stacked, or one under the other."""
    with matplotlib.rc_context(_STYLE):
        names = list(dict.fromkeys(part for stack in parts.values() for part in stack))
        canvas, axes = _canvas(0.8 + (0.22 if stacked else 0.3) * len(parts))
        starts, thickness = [0.0] * len(parts), 0.66 if stacked else 0.8 / len(names)
        for index, part in enumerate(names):
            widths = [stack.get(part, 0.0) for stack in parts.values()]
            at = [row + (0 if stacked else (index - (len(names) - 1) / 2) * thickness) for row in range(len(parts))]
            colour = SERIES[index % len(SERIES)]
            axes.barh(at, widths, thickness, starts, color=colour, label=_plain(part), linewidth=0)
            if stacked:
                starts = [start + width for start, width in zip(starts, widths, strict=True)]
        _label_rows(axes, list(parts), x_label)
        if len(names) > 1:
            canvas.legend(loc="outside upper left", ncols=5, fontsize=8, columnspacing=1.2, handlelength=1)
        return _svg(canvas, name, alt)


def ridges(
    shares: Mapping[str, Sequence[float]], edges: Sequence[float], x_label: str, *, name: str, alt: str, mark: float
) -> Markup:
    """One strip a label, filled as high as each share (0 to 1) of the bins between `edges`, which end the axis too."""
    with matplotlib.rc_context(_STYLE):
        canvas, axes = _canvas(0.6 + (0.34 if len(shares) < 12 else 0.2) * len(shares))
        for row, values in enumerate(shares.values()):
            axes.fill_between([edges[0], edges[-1]], row + 0.4, row - 0.4, color=FAINT, alpha=0.35, linewidth=0)
            tops = [row + 0.4 - 0.8 * value for value in (*values, values[-1])]
            axes.fill_between(edges, row + 0.4, tops, step="post", color=SERIES[0], alpha=0.85, linewidth=0)
        axes.axvline(mark, color=INK, linewidth=0.9, linestyle=":")
        axes.set_xlim(edges[0], edges[-1])
        _label_rows(axes, list(shares), x_label)
        return _svg(canvas, name, alt)


def grid(cells: Mapping[str, Mapping[str, int]], *, name: str, alt: str) -> Markup:
    """A table of small whole numbers, a colour a number: one line a label, one column a part."""
    with matplotlib.rc_context(_STYLE):
        columns = list(dict.fromkeys(part for row in cells.values() for part in row))
        kinds = sorted({value for row in cells.values() for value in row.values()}, reverse=True)
        canvas, axes = _canvas(0.7 + (0.24 if len(cells) < 12 else 0.17) * len(cells))
        for kind in kinds:
            here = [(x, y) for y, row in enumerate(cells.values()) for x, part in enumerate(columns)
                    if row.get(part) == kind]  # fmt: skip
            colour = SERIES[kinds.index(kind) % len(SERIES)]
            at, rows = [x for x, _ in here], [y - 0.44 for _, y in here]
            axes.bar(at, 0.88, 0.94, rows, color=colour, alpha=0.8, linewidth=0, label=f"{kind} bits")
            for x, y in here:
                axes.text(x, y, str(kind), ha="center", va="center", fontsize=7.5, color=PAGE)
        axes.set_xticks(range(len(columns)), [_plain(column) for column in columns])
        axes.grid(visible=False)
        axes.tick_params(axis="x", length=0)
        axes.spines[:].set_visible(False)
        _label_rows(axes, list(cells), "")
        canvas.legend(loc="outside upper left", ncols=6, fontsize=8, columnspacing=1.2, handlelength=1)
        return _svg(canvas, name, alt)


def sprinkle(
    dots: Mapping[str, Sequence[tuple[float, int]]], x_label: str, unit: str, *, name: str, alt: str
) -> Markup:
    """One line a label with all its dots on a logarithmic axis, a colour a kind (the second number)."""
    with matplotlib.rc_context(_STYLE):
        canvas, axes = _canvas(0.8 + 0.24 * len(dots))
        kinds = sorted({kind for row in dots.values() for _, kind in row}, reverse=True)
        for index, kind in enumerate(kinds):
            here = [(value, y) for y, row in enumerate(dots.values()) for value, k in row if k == kind and value > 0]
            x, y = [value for value, _ in here], [row for _, row in here]
            colour = SERIES[index % len(SERIES)]
            axes.plot(x, y, "o", color=colour, markersize=4.5, alpha=0.75, label=f"{kind} {unit}", linewidth=0)
        axes.set_xscale("log")
        found = [value for row in dots.values() for value, _ in row if value > 0]
        wide = max(found, default=1) / min(found, default=1)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if wide < 20 else (1, 3) if wide < 300 else (1,)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        _label_rows(axes, list(dots), x_label)
        canvas.legend(loc="outside upper left", ncols=6, fontsize=8, columnspacing=1.2, handlelength=1)
        return _svg(canvas, name, alt)


def standalone(figure: str) -> str:
    """A figure as a file of its own, with the report's light colours on white."""
    style = "".join(f"--c{index}:{colour};" for index, colour in enumerate(LIGHT))
    head = f"<style>svg{{{style}--line:#d9dadb;--page:#fdfdfc;color:#1c1e21;background:#fdfdfc}}</style>"
    end = figure.index(">") + 1
    return '<?xml version="1.0" encoding="utf-8"?>\n' + figure[:end] + head + figure[end:] + "\n"


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


def _svg(canvas: Canvas, name: str, alt: str) -> Markup:
    """The drawing as an SVG element without size, date, or ids that another figure could have; `alt` says it aloud."""
    file = io.StringIO()
    canvas.savefig(
        file, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Type": None, "Format": None}
    )
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'^(<svg[^>]*?) height="[^"]*"', r"\1", text)
    spoken = f' role="img" aria-label="{escape(alt)}"'
    text = re.sub(r'^(<svg[^>]*?) width="[^"]*"', lambda found: found[1] + spoken, text)
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    for index, colour in enumerate(SERIES):
        text = text.replace(colour, f"var(--c{index})")
    return Markup(text.replace(INK, "currentColor").replace(FAINT, "var(--line)").replace(PAGE, "var(--page)"))
