"""The report: one HTML file with all that a run made and measured (step `report`, `openafm report RUN`).

It begins with half a minute's reading, then follows the paper: data, pretraining, post-training, the device, what came
of it. The step's artifact holds no times and no machine, which differ between equal runs; `write_report` adds them, and
writes the file that users open, `runs/NAME/report.html`. Sections whose stages have not run are left out and named. The
page makes no request and runs no script: styles and figures are in it, and its own policy forbids the rest.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from openafm.reporting import aligning, closing, corpus, fitting, learning, markdown, summary
from openafm.reporting.document import Artifacts, Block, Chapter, Section, Table, read_json
from openafm.stage import Config, Context, Metrics

PARTS: dict[str, tuple[Chapter, ...]] = {
    "Summary": summary.CHAPTERS,
    "Data": corpus.CHAPTERS,
    "Pretraining": learning.CHAPTERS,
    "Post-training": aligning.CHAPTERS,
    "The device": fitting.CHAPTERS,
    "What came of it": closing.MODELS,
    "The run": closing.RUN,
}
"""The chapters, in the paper's order."""


class ReportConfig(Config):
    """What the page says of itself."""

    title: str = "A language model, made the AFM way"
    """Heading of the page."""


def report(config: ReportConfig, context: Context, *, artifacts: dict[str, Path]) -> Metrics:
    """Write `report.html`, without times, from the artifacts of all other steps, by step."""
    there = {name: folder for name, folder in artifacts.items() if (folder / "manifest.json").is_file()}
    sections, missing = compose(Artifacts(there))
    (context.out / "report.html").write_text(render(config.title, sections, missing), encoding="utf-8")
    return {"sections": len(sections), "left_out": sorted(missing)}


def compose(artifacts: Artifacts) -> tuple[list[Section], dict[str, list[str]]]:
    """The sections whose stages have run, and for the others the stages that have not."""
    sections: list[Section] = []
    missing: dict[str, list[str]] = {}
    for part, chapters in PARTS.items():
        for chapter in chapters:
            absent = [stage for stage in chapter.needs if not artifacts.of(stage)]
            blocks = [] if absent else [block for block in chapter.blocks(artifacts) if _says_something(block)]
            if blocks:
                sections.append(Section(part, chapter.title, blocks))
            elif chapter.needs:
                missing[chapter.title] = absent
    return sections, missing


def _says_something(block: Block) -> bool:
    """Whether a block has content: tables without a line are left out."""
    return not isinstance(block, Table) or bool(block.rows)


def render(title: str, sections: Sequence[Section], missing: Mapping[str, Sequence[str]], about: str = "") -> str:
    """The page; `about` says which run it is of."""
    parts: dict[str, list[Section]] = {}
    for section in sections:
        parts.setdefault(section.part, []).append(section)
    listed = "; ".join(f"{name} ({', '.join(stages) or 'nothing to show'})" for name, stages in missing.items())
    return _templates().get_template("report.html.jinja").render(title=title, about=about, parts=parts, missing=listed)


def _templates() -> jinja2.Environment:
    """Templates that escape everything: texts of the web and of models are hostile until shown as text."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["code"] = lambda text: Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))
    return environment


def write_report(run_folder: Path, markdown_file: Path | None = None) -> Path:
    """Write a run's report, whole or partial, with times: `report.html`, or Markdown to a file; its path.

    ValueError where there is no run.
    """
    run = read_json(run_folder / "run.json") or {}
    folders = {path.parent.name: path.parent for path in sorted(run_folder.glob("[!.]*/manifest.json"))}
    if not folders:
        raise ValueError(f"{run_folder} holds no finished step: start it with `openafm run`")
    order = [step["name"] for step in run.get("steps", [])]
    folders = {name: folders[name] for name in [*order, *sorted(folders.keys() - set(order))] if name in folders}
    sections, missing = compose(Artifacts(folders, run))
    write = markdown.render if markdown_file else render
    page = write(run.get("title") or ReportConfig().title, sections, missing, _about(run, len(folders), len(order)))
    path = markdown_file or run_folder / "report.html"
    partial = path.with_name(f".{path.name}.new")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path


def _about(run: Mapping[str, object], done: int, planned: int) -> str:
    """Which run, and how much of it is there."""
    recipe = f"Recipe {run['recipe']}, seed {run.get('seed')}. " if run.get("recipe") else ""
    return (
        f"{recipe}{done} of {planned} steps have run."
        if planned > done
        else f"{recipe}All {done} steps have run."
        if planned
        else recipe
    )
