"""The machine and the checkout: benchmarks, what is missing, what everything is licensed under."""

import json
import runpy
import sys
from pathlib import Path
from typing import Annotated

import typer

from openafm.cli.common import AsJson, app, plain_errors


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context, name: Annotated[str, typer.Argument(help="A script of benchmarks/, without .py.")]
) -> None:
    """Run one of the benchmarks of a checkout; what follows the name goes to the script.

    Example: openafm bench palettize --json
    """
    with plain_errors():
        folder = Path("benchmarks")
        script = folder / f"{name.replace('-', '_')}.py"
        if not script.is_file():
            known = (
                ", ".join(sorted(path.stem for path in folder.glob("*.py"))) or "none; go to a checkout of the project"
            )
            raise ValueError(f"no benchmark called {name!r}; there are: {known}")
        sys.argv = [str(script), *context.args]
        sys.path.insert(0, str(folder.resolve()))  # as python itself does for a script: they share harness.py
        runpy.run_path(str(script), run_name="__main__")


@app.command()
def doctor(json_: AsJson = False) -> None:
    """Say whether this machine is ready, and how to get what is missing.

    Example: openafm doctor
    """
    from dataclasses import asdict

    from openafm.recipe.doctor import examine

    checks = examine()
    if json_:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        for check in checks:
            mark = "ok     " if check.good else "MISSING" if check.needed else "without"
            typer.echo(f"{mark}  {check.name:<14} {check.found}" + ("" if check.good else f"; get it: {check.remedy}"))
    raise typer.Exit(0 if all(check.good or not check.needed for check in checks) else 1)


@app.command()
def licences(
    extra: Annotated[list[str], typer.Option(help="Count an extra's packages too, such as dev.")] = [],  # noqa: B006
    json_: AsJson = False,
) -> None:
    """List the licence of every dependency and of every source of data.

    Example: openafm licences --extra dev
    """
    with plain_errors():
        from dataclasses import asdict

        from openafm.recipe.licences import everything

        found = everything(extra)
        if json_:
            typer.echo(json.dumps([asdict(entry) | {"permissive": entry.permissive} for entry in found], indent=1))
            return
        for entry in found:
            mark = " " if entry.permissive else "*"
            typer.echo(f"{mark} {entry.of:<11}{entry.name:<34}{entry.version:<16}{entry.licence or 'none declared'}")
        others = sum(not entry.permissive for entry in found)
        typer.echo(f"{len(found)} in all; * {others} of no licence known as permissive: look at these")
