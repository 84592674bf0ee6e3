"""One table a model, or several beside each other: every line with its n and 95% interval."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from openafm.evaluation.intervals import Estimate
from openafm.evaluation.suite.items import by_metric, difference
from openafm.evaluation.suite.run import Sheet
from openafm.evaluation.suite.task import Task

NOT_MEASURED = "not measured"


def lines(tasks: Sequence[Task], sheets: Sequence[Sheet], differences: bool = True) -> list[dict[str, Any]]:
    """The lines of the table: {"task", "part", "what", "unit", "better", "guess", "values": one a model}.

    Each value is {"value", "low", "high", "n"}, from the second model on with "difference" to the first, the same
    four; or {"missing": why}.
    """
    found = []
    for task in tasks:
        parts = list(dict.fromkeys(item.metric for sheet in sheets for item in sheet.items.get(task.name, [])))
        for part in parts or [""]:
            values = [_value(task, part, sheet, sheets[0] if differences and number else None)
                      for number, sheet in enumerate(sheets)]  # fmt: skip
            about = {"unit": task.unit, "better": task.better, "guess": task.guess}
            if "bits_per_" in part:
                about |= {"unit": "bits", "better": "lower"}
            elif "nats_per_item" in part:
                about |= {"unit": "nats", "better": "lower"}
            found.append({"task": task.name, "part": part, "what": task.what, **about, "values": values})
    return found


def _value(task: Task, part: str, sheet: Sheet, first: Sheet | None) -> dict[str, Any]:
    if task.name in sheet.missing:
        return {"missing": sheet.missing[task.name]}
    items = by_metric(sheet.items[task.name])
    if part not in items:
        return {"missing": "this part was not measured"}
    value = _figures(sheet.estimates(task.name)[part])
    if first is not None and part in (theirs := by_metric(first.items.get(task.name, []))):
        try:
            value["difference"] = _figures(difference(items[part], theirs[part]))
        except ValueError as reason:
            value["difference"] = {"missing": str(reason)}
    return value


def _figures(estimate: Estimate) -> dict[str, Any]:
    ends = {"low": estimate.low, "high": estimate.high}
    return {"value": round(estimate.value, 6), **{k: None if v is None else round(v, 6) for k, v in ends.items()},
            "n": estimate.n}  # fmt: skip


def told(figures: dict[str, Any], unit: str, sign: str = "") -> str:
    """A value as printed, with its interval."""
    if "missing" in figures:
        return NOT_MEASURED
    scale, digits = {"%": (100, 1), "bits": (1, 3)}.get(unit, (1, 2))
    value = f"{figures['value'] * scale:{sign}.{digits}f}"
    if figures["low"] is None:
        return f"{value} (n = 1)"
    return f"{value} [{figures['low'] * scale:{sign}.{digits}f}, {figures['high'] * scale:{sign}.{digits}f}]"


def label(line: dict[str, Any]) -> str:
    """Task and part."""
    return f"{line['task']}: {line['part']}" if line["part"] else str(line["task"])


def headings(sheets: Sequence[Sheet]) -> list[str]:
    """Of the columns after the first."""
    columns = []
    for number, sheet in enumerate(sheets):
        columns.append(sheet.subject + (f" + {sheet.adapter}" if sheet.adapter else ""))
        if number:
            columns.append(f"less {sheets[0].subject}")
    return ["n", *columns, "unit", "better", "guess"]


def cells(line: dict[str, Any]) -> list[str]:
    """The columns after the first; a difference whose interval leaves out 0 is marked with *."""
    values, columns = line["values"], []
    for number, value in enumerate(values):
        columns.append(told(value, line["unit"]))
        if number:
            gap = value.get("difference")
            columns.append("" if gap is None else told(gap, line["unit"], "+") + ("*" if differs(gap) else ""))
    counts = sorted({value["n"] for value in values if "n" in value})
    guess = "" if line["guess"] is None else f"{line['guess'] * (100 if line['unit'] == '%' else 1):g}"
    return ["/".join(map(str, counts)), *columns, line["unit"], line["better"], guess]


def differs(gap: dict[str, Any]) -> bool:
    """Whether a difference's interval leaves out 0."""
    return gap.get("low") is not None and (gap["low"] > 0 or gap["high"] < 0)


def render(rows: list[dict[str, Any]], sheets: Sequence[Sheet]) -> Table:
    """The table for the terminal."""
    title = f"Suite {sheets[0].suite}: value [95% interval]"
    if len(sheets) > 1:
        title += "; differences by paired bootstrap, * where the interval leaves out 0"
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("measure", no_wrap=True)
    for heading in headings(sheets):
        table.add_column(escape(heading), justify="left" if heading == "better" else "right", overflow="fold")
    for line in rows:
        table.add_row(escape(label(line)), *map(escape, cells(line)))
    return table


def markdown(rows: list[dict[str, Any]], sheets: Sequence[Sheet]) -> str:
    """The table for a document, and why what is missing is missing."""
    head = ["measure", *headings(sheets)]
    body = [[label(line), *cells(line)] for line in rows]
    text = "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])
    notes = reasons(sheets)
    return text + "\n" + ("\n" + "\n".join(f"- {note}" for note in notes) + "\n" if notes else "")


def reasons(sheets: Sequence[Sheet]) -> list[str]:
    """What was not measured, and why."""
    return list(dict.fromkeys(
        f"{NOT_MEASURED}: {task}: {why}" for sheet in sheets for task, why in sheet.missing.items()
    ))  # fmt: skip
