"""The report: one HTML file with all that a run made and measured (step `report`, `openafm report RUN`).

It begins with half a minute's reading, then follows the paper: data, pretraining, post-training, the device, what came
of it. The step's artifact holds no times and no machine, which differ between equal runs; `write_report` adds them, and
writes the file that users open, `runs/NAME/report.html`. Sections whose stages have not run are left out and named. The
page makes no request and runs no script: styles and figures are in it, and its own policy forbids the rest.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from openafm.reporting import aligning, claims, closing, corpus, fitting, learning, markdown, modelcard, speed, summary
from openafm.reporting.document import Artifacts, Block, Chapter, Figure, Samples, Section, Table
from openafm.stage import Config, Context, Metrics

PARTS: dict[str, tuple[Chapter, ...]] = {
    "Summary": summary.CHAPTERS,
    "Data": corpus.CHAPTERS,
    "Pretraining": learning.CHAPTERS,
    "Post-training": aligning.CHAPTERS,
    "The device": fitting.CHAPTERS + speed.CHAPTERS,
    "Claims": claims.CHAPTERS,
    "What came of it": closing.MODELS + modelcard.CHAPTERS,
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
            blocks = [] if absent else [block for block in _sourced(chapter, artifacts) if _says_something(block)]
            if blocks:
                sections.append(Section(part, chapter.title, blocks))
            elif chapter.needs:
                missing[chapter.title] = absent
    return sections, missing


def _sourced(chapter: Chapter, artifacts: Artifacts) -> Iterator[Block]:
    """The chapter's blocks; tables, figures and samples with what was read since the block before, or else the same."""
    artifacts.reads.clear()
    source = ""
    for block in chapter.blocks(artifacts):
        source = source_of(artifacts) if artifacts.reads else source
        artifacts.reads.clear()
        yield replace(block, source=block.source or source) if isinstance(block, Table | Figure | Samples) else block


def source_of(artifacts: Artifacts) -> str:
    """Which files were read, and the command that makes them."""
    files: dict[str, list[str]] = {}
    for step, name in dict.fromkeys(artifacts.reads):
        files.setdefault(name, []).append(step)
    steps = list(dict.fromkeys(step for step, _ in artifacts.reads if step))
    told = ", ".join(
        f"`{name}` of {'all steps' if 8 < len(of) >= len(artifacts.folders) - 1 else ', '.join(of)}"
        if any(of)
        else f"`{name}`"
        for name, of in files.items()
    )
    only = "" if not steps else f" --only {steps[0]}" if len(steps) == 1 else " --only STEP"
    return f"From {told}; made by `{command_of(artifacts.run or {}, short=True)}{only}`"


def command_of(run: Mapping[str, Any], short: bool = False) -> str:
    """The command that brings the run up to date; `short` leaves its overrides to the page's head."""
    recipe, *overrides = run.get("command") or ["RECIPE"]
    options = ["…"] if short and overrides else [word for given in overrides for word in ("--set", shlex.quote(given))]
    return " ".join(["openafm run", recipe, *options])


def _says_something(block: Block) -> bool:
    """Whether a block has content: tables without a line are left out."""
    return not isinstance(block, Table) or bool(block.rows)


def render(
    title: str,
    sections: Sequence[Section],
    missing: Mapping[str, Sequence[str]],
    about: str = "",
    gaps: Sequence[str] = (),
) -> str:
    """The page; `about` says which run it is of, `gaps` what of it is missing and why."""
    parts: dict[str, list[Section]] = {}
    for section in sections:
        parts.setdefault(section.part, []).append(section)
    listed = "; ".join(f"{name} ({', '.join(stages) or 'nothing to show'})" for name, stages in missing.items())
    page = _templates().get_template("report.html.jinja")
    return page.render(title=title, about=about, gaps=gaps, parts=parts, missing=listed)


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
    artifacts = Artifacts.of_run(run_folder)
    if not artifacts.folders:
        raise ValueError(f"{run_folder} holds no finished step: start it with `openafm run`")
    run = artifacts.run or {}
    sections, missing = compose(artifacts)
    about = _about(run, len(artifacts.folders), len(run.get("steps", [])))
    write = markdown.render if markdown_file else render
    page = write(run.get("title") or ReportConfig().title, sections, missing, about, gaps_of(run_folder, run))
    path = markdown_file or run_folder / "report.html"
    partial = path.with_name(f".{path.name}.new")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path


def gaps_of(folder: Path, run: Mapping[str, Any]) -> list[str]:
    """What of the run is missing: steps that failed, with the error, that were broken off, and that have not begun."""
    names = [step["name"] for step in run.get("steps", [])]
    missing = [name for name in names if not (folder / name / "manifest.json").is_file()]
    begun = {name: folder / f".{name}.partial" for name in missing if (folder / f".{name}.partial").is_dir()}
    gaps = []
    for name, scratch in begun.items():
        error = scratch / "error.txt"
        if error.is_file():
            last = error.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] or ["no message"]
            gaps.append(f"Step `{name}` failed: {last[0]} (traceback: `{error.relative_to(folder)}`).")
        else:
            gaps.append(f"Step `{name}` was broken off, or is at work now.")
    if waiting := [name for name in missing if name not in begun]:
        gaps.append(f"Not run yet: {', '.join(waiting)}.")
    return [*gaps, f"`{command_of(run)}` goes on from here."] if gaps else []


def _about(run: Mapping[str, object], done: int, planned: int) -> str:
    """Which run, how much of it is there, and the command that made it."""
    recipe = f"Recipe {run['recipe']}, seed {run.get('seed')}. " if run.get("recipe") else ""
    made = f" Made by `{command_of(run)}`." if run.get("command") else ""
    if planned > done:
        return f"{recipe}{done} of {planned} steps have run.{made}"
    return f"{recipe}All {done} steps have run.{made}" if planned else recipe
