"""Runs: brought up to date, watched, planned, reported on."""

import json
from pathlib import Path
from typing import Annotated

import typer

from openafm.cli.common import RUNS, AsJson, Run, RunsDir, app, plain_errors, run_folder, terminal


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (nano, tiny, micro) or a YAML file.")],
    runs_dir: RunsDir = RUNS,
    set_: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override: STEP.key or a path.")] = [],  # noqa: B006
    only: Annotated[str | None, typer.Option(metavar="STEP", help="Run this step on what is there.")] = None,
    from_: Annotated[str | None, typer.Option("--from", metavar="STEP", help="Redo it and its followers.")] = None,
    until: Annotated[str | None, typer.Option(metavar="STEP", help="Stop after this step.")] = None,
    cluster: Annotated[
        str | None,
        typer.Option(envvar="OPENAFM_CLUSTER", metavar="ADDRESS", help="Ray cluster for the data steps, or `local`."),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write curves of training for TensorBoard too, in RUN/tensorboard.")
    ] = False,
) -> None:
    """Bring a recipe's run up to date; what is current is skipped.

    Example: openafm run nano --set teacher.tokens=200000 --until distil
    """
    with plain_errors():
        from openafm.recipe import recipe as recipes
        from openafm.recipe.runner import run_to_the_end

        console = terminal()
        if cluster:
            from openafm.data.parallel import use_cluster

            use_cluster(cluster)
        wanted = recipes.load(recipe, set_)
        run_to_the_end(
            wanted, runs_dir, console, command=[recipe, *set_], only=only, start=from_, until=until,
            tensorboard=tensorboard,
        )  # fmt: skip


@app.command()
def status(
    run: Run,
    watch: Annotated[bool, typer.Option("--watch", help="Look on while it runs; Ctrl-C leaves it alone.")] = False,
    json_: AsJson = False,
) -> None:
    """Show each step of a run: current, stale and why, planned and spent time; with --watch as it goes on.

    Example: openafm status nano; openafm status nano --watch
    """
    with plain_errors():
        if watch:
            from openafm.recipe.watch import watch as look_on

            if json_:
                raise ValueError("--watch is for people: leave out --json")
            raise typer.Exit(look_on(run_folder(run), terminal()))
        from openafm.recipe.status import of_run, table

        found = of_run(run_folder(run))
        if json_:
            typer.echo(json.dumps([state.summary() for state in found], indent=1))
            return
        terminal().print(table(found))


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or a YAML file.")],
    devices: Annotated[int, typer.Option(min=1, help="How many.")],
    device: Annotated[str, typer.Option(help="H100, A100, MI300X, RTX4090 or M4Max.")],
    set_: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override: STEP.key or a path.")] = [],  # noqa: B006
    json_: AsJson = False,
) -> None:
    """Say what a recipe's pretraining takes on devices of a kind: memory, time, cost, and how they best share it.

    Example: openafm plan afm-on-device --devices 512 --device H100
    """
    with plain_errors():
        from rich.console import Console

        from openafm.recipe import plan as planning
        from openafm.recipe import recipe as recipes

        with Console(stderr=True).status("") as shown:  # out of what a script reads
            kind, plans = planning.plan(recipes.load(recipe, set_), devices, device, shown.update)
        if json_:
            typer.echo(json.dumps(planning.as_json(plans, devices, kind), indent=1))
        else:
            terminal().print(planning.table(plans, devices, kind))
            typer.echo("\n".join(planning.footnotes(plans, kind)))
        raise typer.Exit(1 if any(found.warning for found in plans) else 0)


@app.command()
def report(
    run: Run,
    markdown: Annotated[Path | None, typer.Option(help="Write the report's texts and tables as Markdown here.")] = None,
) -> None:
    """Write the run's report.html anew from its artifacts.

    Example: openafm report nano --markdown docs/results/nano.md
    """
    with plain_errors():
        from openafm.recipe.artifacts import verify
        from openafm.recipe.status import read_settings
        from openafm.reporting.report import write_report

        folder = run_folder(run)
        read_settings(folder)
        for manifest in sorted(folder.glob("[!.]*/manifest.json")):
            verify(manifest.parent)
        typer.echo(str(write_report(folder, markdown)))
