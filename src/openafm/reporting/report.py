"""The report: one HTML file with all that a run made and measured (step `report`, `openafm report RUN`).

The step's artifact holds no times, which differ between equal runs; `write_report` adds planned and spent time and the
machine, and writes the file that users open, `runs/NAME/report.html`. Sections whose steps have not run are left out
and named. The page makes no request: styles and figures are in it, and its own policy forbids the rest.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from openafm.reporting import aligning, closing, corpus, fitting, learning
from openafm.reporting.document import Artifacts, Block, Cell, Section, Table, Text, number, read_json
from openafm.stage import Config, Context, Metrics

CHAPTERS = (
    *closing.FIRST, *corpus.CHAPTERS, *learning.CHAPTERS, *aligning.CHAPTERS, *fitting.CHAPTERS, *closing.LAST,
)  # fmt: skip
ENTRY, TIMES = "<!-- openafm: entry of the times -->", "<!-- openafm: the times -->"


class ReportConfig(Config):
    """What the page says of itself."""

    title: str = "A language model, made the AFM way"
    """Heading of the page."""


def report(
    config: ReportConfig, context: Context, *, evaluations: dict[str, Path], artifacts: dict[str, Path]
) -> Metrics:
    """Write `report.html`, without times, from artifacts of stage `evaluate` and of all others, by step."""
    read = Artifacts({name: folder for name, folder in artifacts.items() if folder.is_dir()}, evaluations)
    sections, missing = compose(read)
    (context.out / "report.html").write_text(render(config.title, sections, missing), encoding="utf-8")
    return {"sections": len(sections), "left_out": sorted(missing)}


def compose(artifacts: Artifacts) -> tuple[list[Section], dict[str, list[str]]]:
    """The sections whose steps have run, and for the others the steps that have not."""
    sections: list[Section] = []
    missing: dict[str, list[str]] = {}
    for chapter in CHAPTERS:
        absent = [step for step in chapter.needs if not artifacts.has(step)]
        blocks = [] if absent else [block for block in chapter.blocks(artifacts) if _says_something(block)]
        if blocks:
            sections.append(Section(chapter.title, blocks))
        else:
            missing[chapter.title] = absent or ["the evaluations"]
    return sections, missing


def _says_something(block: Block) -> bool:
    """Whether a block has content: tables without a line are left out."""
    return not isinstance(block, Table) or bool(block.rows)


def render(title: str, sections: list[Section], missing: Mapping[str, list[str]]) -> str:
    """The page."""
    lead = ["Made by openafm: every figure and table is read from the run's own artifacts."]
    if missing:
        listed = "; ".join(f"{name} ({', '.join(steps)})" for name, steps in missing.items())
        lead.append(f"Left out, as these steps have not run: {listed}.")
    return _templates().get_template("report.html.jinja").render(title=title, lead=lead, sections=sections)


def _templates() -> jinja2.Environment:
    """Templates that escape everything: texts of the web and of models are hostile until shown as text."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["code"] = lambda text: Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))
    return environment


def with_times(
    report_html: str, manifests: Mapping[str, Mapping[str, Any]], machine: Mapping[str, Any] | None = None
) -> str:
    """The page with one more section: planned and spent time by step, and the environment."""
    section = Section("Time and machine", [_times(manifests), *_environment(manifests, machine or {})])
    blocks: Any = _templates().get_template("blocks.html.jinja").module
    return report_html.replace(ENTRY, blocks.entry(section), 1).replace(TIMES, blocks.section(section), 1)


def _times(manifests: Mapping[str, Mapping[str, Any]]) -> Table:
    rows: list[list[Cell | str]] = []
    spent_in_all = planned_in_all = 0.0
    for step, manifest in manifests.items():
        spent, planned = (manifest.get("times") or {}).get("seconds"), manifest.get("planned_seconds")
        memory, size = manifest.get("peak_memory_mb"), sum(o["bytes"] for o in manifest.get("outputs", {}).values())
        rows.append([step, number(planned, 0), number(spent, 1), number(memory, 0), number(size / 1e6, 1)])
        spent_in_all, planned_in_all = spent_in_all + (spent or 0), planned_in_all + (planned or 0)
    rows.append(["all", number(planned_in_all, 0), number(spent_in_all, 1), "", ""])
    caption = "Each step's last run: planned and spent wall-clock seconds, peak memory of the process, size on disk."
    return Table(caption, ["step", "planned s", "spent s", "memory MB", "disk MB"], rows)


def _environment(manifests: Mapping[str, Mapping[str, Any]], machine: Mapping[str, Any]) -> list[Block]:
    """The machine of the run's first start, and the versions that its steps noted."""
    rows = [
        [name, str(value)] for part in ("machine", "hardware", "probe") for name, value in machine.get(part, {}).items()
    ]
    versions = {name: v for manifest in manifests.values() for name, v in manifest.get("versions", {}).items()}
    rows += [[name, version] for name, version in sorted(versions.items())]
    if not rows:
        return [Text("The run has not recorded its machine.")]
    return [Table("The machine, the choices of its probe, and versions of packages.", ["what", "value"], rows)]


def write_report(run_folder: Path) -> Path:
    """Write `report.html` of a run, whole or partial, with times; its path. ValueError where there is no run."""
    run = read_json(run_folder / "run.json") or {}
    folders = {path.parent.name: path.parent for path in sorted(run_folder.glob("[!.]*/manifest.json"))}
    if not folders:
        raise ValueError(f"{run_folder} holds no finished step: start it with `openafm run`")
    order = [step["name"] for step in run.get("steps", [])]
    folders = {name: folders[name] for name in [*order, *sorted(folders.keys() - set(order))] if name in folders}
    evaluations = {name: folder for name, folder in folders.items() if (folder / "evaluation.json").is_file()}
    others = {name: folder for name, folder in folders.items() if name not in evaluations and name != "report"}
    sections, missing = compose(Artifacts(others, evaluations))
    html = render(run.get("title") or ReportConfig().title, sections, missing)
    manifests = {name: json.loads((folder / "manifest.json").read_text()) for name, folder in folders.items()}
    path = run_folder / "report.html"
    partial = path.with_name(".report.html.new")
    partial.write_text(with_times(html, manifests, run), encoding="utf-8")
    partial.replace(path)
    return path
