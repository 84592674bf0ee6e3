"""What a report is made of: sections of text, tables, figures and samples, and the artifacts they are read from."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from openafm import jsonl
from openafm.evaluation.intervals import Estimate
from openafm.evaluation.table import cell


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
class Table:
    """A table; columns from `numbers_from` on hold numbers. The caption states what is shown, on what and how much."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    numbers_from: int = 1
    kind: str = "table"


@dataclass(frozen=True)
class Figure:
    """A drawing of `openafm.reporting.plots`."""

    caption: str
    svg: Markup
    kind: str = "figure"


@dataclass(frozen=True)
class Samples:
    """Texts side by side: a title, and what each model made of it."""

    caption: str
    items: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    kind: str = "samples"


Block = Text | Table | Figure | Samples


@dataclass(frozen=True)
class Artifacts:
    """The artifacts a report reads, by step; steps that have not run are absent."""

    folders: dict[str, Path]
    evaluations: dict[str, Path] = field(default_factory=dict)

    def has(self, step: str) -> bool:
        """Whether the step has run."""
        return (self.folders.get(step) or self.evaluations.get(step) or Path("/nowhere")).is_dir()

    def manifest(self, step: str) -> dict[str, Any]:
        """The step's manifest; empty where there is none."""
        folder = self.folders.get(step) or self.evaluations.get(step)
        return read_json(folder / "manifest.json") or {} if folder else {}

    def metrics(self, step: str) -> dict[str, Any]:
        """What the step's stage returned."""
        return self.manifest(step).get("metrics") or {}

    def facts(self, step: str) -> list[tuple[str, str]]:
        """The step's plain metrics, names and values as text; nested names are joined, lists left out."""
        return list(_flat(self.metrics(step), ""))

    def json(self, step: str, name: str) -> Any:
        """A JSON file of the artifact; None where it is absent."""
        return read_json(self.folders[step] / name) if self.has(step) and step in self.folders else None

    def lines(self, step: str, name: str) -> list[dict[str, Any]]:
        """A JSONL file of the artifact; empty where it is absent."""
        path = self.folders.get(step, Path("/nowhere")) / name
        return jsonl.read(path) if path.is_file() else []


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
    """A section to be: its title, the steps it cannot do without, and who makes its blocks."""

    title: str
    needs: tuple[str, ...]
    blocks: Callable[[Artifacts], Iterator[Block]]


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    title: str
    blocks: list[Block]

    @property
    def anchor(self) -> str:
        """Its id in the page."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())


def estimate_cell(metric: str, estimate: Estimate | None) -> Cell:
    """A measured value with its interval."""
    return Cell(*cell(metric, estimate))


def number(value: Any, digits: int = 2) -> str:
    """A number as tables print it: counts with commas, others to `digits` decimals, nothing as a dash."""
    if value is None or isinstance(value, bool | str):
        return "–" if value in (None, "") else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share in percent."""
    return "–" if share is None else f"{100 * share:.{digits}f}%"
