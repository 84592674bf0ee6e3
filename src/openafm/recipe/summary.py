"""What a run ends with: the table of evaluated stages, the report, and the commands to try next."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from openafm.recipe.progress import clock
from openafm.recipe.recipe import Recipe
from openafm.recipe.status import State


def finish(run: Path, recipe: Recipe, before: list[State], seconds: float, console: Console) -> None:
    """Print the ending of a run whose steps stood as `before` says, and write its report anew if anything changed."""
    executed = [state.step for state in before if state.state != "current"]
    planned = sum(step.seconds for step in executed)
    if executed:
        console.print(f"{_steps(executed)} in {clock(seconds)} (planned {clock(planned)})", highlight=False)
    else:
        console.print(f"nothing to do: {_steps(before)} current", highlight=False)
    _print_table(run, recipe, console)
    if executed or not (run / "report.html").exists():
        _write_report(run)
    for command, purpose in _next_commands(run, recipe).items():
        console.print(f"  {command:<44} {purpose}", highlight=False, markup=False, soft_wrap=True)


def _steps(found: Sequence[object]) -> str:
    return f"{len(found)} step{'s' * (len(found) != 1)}"


def _write_report(run: Path) -> None:
    from openafm.reporting.report import write_report

    write_report(run)


def _print_table(run: Path, recipe: Recipe, console: Console) -> None:
    """One line an evaluated model; and what fitting to the device cost."""
    evaluations = {name: run / name for name in recipe.steps if (run / name / "evaluation.json").exists()}
    if evaluations:
        from openafm.evaluation.table import render, stage_table

        console.print(render(stage_table(evaluations)))
    for name in recipe.steps:
        if (run / name / "fitting.json").exists():
            from openafm.evaluation import fitting

            console.print(name, *fitting.render(run / name), sep="\n", highlight=False)
        if (run / name / "summaries.json").exists():
            from openafm.evaluation import summaries

            console.print(summaries.render(run / name), highlight=False)


def _next_commands(run: Path, recipe: Recipe) -> dict[str, str]:
    commands = {f"openafm status {run}": "what is current, and why the rest is not"}
    if any((run / name / "model.safetensors").exists() for name in recipe.steps):
        commands[f"openafm chat {run}"] = "talk to the newest model"
    if any((run / name / "documents").exists() for name in recipe.steps):
        commands[f"openafm why URL --run {run}"] = "what became of a page, and at which filter"
    if (run / "report.html").exists():
        commands[f"open {run / 'report.html'}"] = "curves, funnel, samples"
    return commands
