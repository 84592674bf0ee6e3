"""What a report is made of: sections of text, tables, figures and samples, and the artifacts they are read from.

Artifacts are found by the stage that made them, as their manifests tell it, and by what they were made of; no chapter
knows a step's name. So a recipe may have any steps, in any number: two committee rounds, three recovery adapters.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup

from openafm import jsonl
from openafm.evaluation.intervals import Estimate
from openafm.evaluation.table import Row, cell, read_row


@dataclass(frozen=True)
class Cell:
    """One value of a table, its interval or unit in small print beside it."""

    text: str
    small: str = ""


Rows = list[list[Cell | str]]


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Points:
    """A list, under a heading of its own."""

    heading: str
    items: Sequence[str]
    kind: str = "points"


@dataclass(frozen=True)
class Keys:
    """Key figures: label, value with its interval, and what it is measured on or against."""

    figures: Sequence[tuple[str, Cell, str]]
    kind: str = "keys"


@dataclass(frozen=True)
class Table:
    """A table; columns from `numbers_from` on hold numbers. The caption states what is shown, on what and how much."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    numbers_from: int = 1
    source: str = ""
    """The files it is read from and the command that makes them; `report.compose` fills it in."""
    kind: str = "table"


@dataclass(frozen=True)
class Figure:
    """A drawing of `openafm.reporting.plots`."""

    caption: str
    svg: Markup
    source: str = ""
    kind: str = "figure"


@dataclass(frozen=True)
class Sample:
    """What one model wrote; `passed` where a program has checked it."""

    label: str
    text: str
    passed: bool | None = None


@dataclass(frozen=True)
class Samples:
    """Texts side by side: a title, and what each model made of it."""

    caption: str
    items: Sequence[tuple[str, Sequence[Sample]]]
    source: str = ""
    kind: str = "samples"


Block = Text | Points | Keys | Table | Figure | Samples


@dataclass(frozen=True)
class Evaluated:
    """An evaluated model: its name in tables, the step that made it, and what was measured."""

    label: str
    model: str
    row: Row


@dataclass(frozen=True)
class Artifacts:
    """The artifacts a report reads, by step, in the recipe's order; steps that have not run are absent."""

    folders: dict[str, Path]
    run: dict[str, Any] | None = None
    """The run's own record (run.json); None inside step `report`, whose artifact holds no times and no machine."""
    benchmarks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What `openafm bench NAME --keep RUN` measured for this run, by file."""
    reads: list[tuple[str, str]] = field(default_factory=list, compare=False, repr=False)
    """Step and file of all that was read, in order: so a block knows what it was made of (`report.compose`)."""

    @classmethod
    def of_run(cls, folder: Path) -> "Artifacts":
        """All artifacts of a run, in the recipe's order, with the run's own record."""
        run = read_json(folder / "run.json") or {}
        there = {path.parent.name: path.parent for path in sorted(folder.glob("[!.]*/manifest.json"))}
        order = [step["name"] for step in run.get("steps", [])]
        kept = {path.name: read_json(path) for path in sorted(folder.glob("benchmarks/*.json"))}
        return cls(
            {name: there[name] for name in [*order, *sorted(there.keys() - set(order))] if name in there}, run, kept
        )

    @cached_property
    def manifests(self) -> dict[str, dict[str, Any]]:
        """Every step's manifest. Raises ValueError naming a damaged one."""
        return {step: read_json(folder / "manifest.json") or {} for step, folder in self.folders.items()}

    def of(self, *stages: str) -> list[str]:
        """The steps that these stages made, in the recipe's order."""
        return [step for step, manifest in self.manifests.items() if manifest.get("stage") in stages]

    def input(self, step: str, name: str) -> str | None:
        """The step that `step` read as its input `name`."""
        found = self.manifests[step].get("inputs", {}).get(name)
        return found["step"].partition("/")[0] if found else None

    def path(self, step: str, name: str) -> Path:
        """A file of the artifact."""
        self.reads.append((step, name))
        return self.folders[step] / name

    def manifest(self, step: str | None) -> dict[str, Any]:
        """The step's manifest; empty for no step."""
        if step not in self.manifests:
            return {}
        self.reads.append((step, "manifest.json"))
        return self.manifests[step]

    def metrics(self, step: str | None) -> dict[str, Any]:
        """What the step's stage returned; empty for no step."""
        return self.manifest(step).get("metrics") or {}

    def facts(self, step: str) -> list[tuple[str, str]]:
        """The step's plain metrics, names and values as text; nested names are joined, lists left out."""
        return list(_flat(self.metrics(step), ""))

    def json(self, step: str, name: str) -> Any:
        """A JSON file of the artifact; None where it is absent."""
        return read_json(self.path(step, name))

    def lines(self, step: str, name: str) -> list[dict[str, Any]]:
        """A JSONL file of the artifact; empty where it is absent."""
        if not (self.folders[step] / name).is_file():
            return []
        return jsonl.read(self.path(step, name))

    @property
    def evaluated(self) -> list[Evaluated]:
        """Every evaluated model, in the recipe's order; its step's name where two have the same."""
        self.reads.extend((model.row.step, "evaluation.json") for model in self._evaluated)
        return self._evaluated

    @cached_property
    def _evaluated(self) -> list[Evaluated]:
        steps = self.of("evaluate")
        found = [(step, read_row(step, self.folders[step]), self.input(step, "model") or step) for step in steps]
        names = Counter(row.model for _, row, _ in found)
        return [Evaluated(row.model if names[row.model] == 1 else step, model, row) for step, row, model in found]

    def evaluation(self, model: str | None) -> Evaluated | None:
        """The evaluation of what step `model` made; where there are several, the last."""
        found = next((e for e in reversed(self._evaluated) if e.model == model), None)
        if found:
            self.reads.append((found.row.step, "evaluation.json"))
        return found


def last(steps: Sequence[str]) -> str | None:
    """The last of the steps, which is the state the recipe ends with."""
    return steps[-1] if steps else None


def read_json(path: Path) -> Any:
    """A JSON file, or None where there is none. Raises ValueError naming a damaged one."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}): run its step again") from error


def _flat(metrics: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in metrics.items():
        label = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, dict):
            yield from _flat(value, f"{label}, ")
        elif isinstance(value, bool | int | str) and name != "headline":
            yield label, number(value) if len(str(value)) <= 200 else f"{str(value)[:200]}…"
        elif isinstance(value, float):
            yield label, f"{value:.4g}"


@dataclass(frozen=True)
class Chapter:
    """A section to be: its title, the stages it cannot do without, and who makes its blocks."""

    title: str
    needs: tuple[str, ...]
    blocks: Callable[[Artifacts], Iterator[Block]]


@dataclass(frozen=True)
class Section:
    """A section of the page, in one of its parts."""

    part: str
    title: str
    blocks: list[Block]

    @property
    def anchor(self) -> str:
        """Its id in the page."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())


def estimate_cell(metric: str, estimate: Estimate | None) -> Cell:
    """A measured value with its interval."""
    return Cell(*cell(metric, estimate))


def share_cell(found: Estimate | dict[str, Any] | None) -> Cell:
    """A success rate with its interval, in percent: an estimate, or a stage's {"rate", "low", "high", "n"}."""
    if isinstance(found, Estimate):
        found = {"rate": found.value, "low": found.low, "high": found.high}
    if not found or found.get("rate") is None:
        return Cell("–")
    return Cell(f"{100 * found['rate']:.1f}", span(found.get("low"), found.get("high"), 100, 0))


def span(low: float | None, high: float | None, scale: float = 1, digits: int = 2) -> str:
    """The ends of an interval; empty where there are none."""
    return "" if low is None or high is None else f"{scale * low:.{digits}f} to {scale * high:.{digits}f}"


def number(value: Any, digits: int = 2) -> str:
    """A number as tables print it: counts with commas, others to `digits` decimals, nothing as a dash."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or isinstance(value, str):
        return value or "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share in percent."""
    return "–" if share is None else f"{100 * share:.{digits}f}%"
