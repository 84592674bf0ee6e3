"""What the verbs share: the app, its common arguments, and how errors are told."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    help="The open factory for on-device language models: from raw pages to served adapters.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
RunsDir = Annotated[Path, typer.Option(help="Folder that holds the runs.")]
Run = Annotated[Path, typer.Argument(help="A run's folder, such as runs/nano, or its name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
RUNS = Path("runs")
_debug = False


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what went wrong into one line and an exit code; `--debug` shows the traceback."""
    from openafm.recipe.runner import RunError

    try:
        yield
    except (ValueError, RunError, OSError) as error:
        if _debug:
            raise
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, ValueError) else 1) from None
    except ImportError as error:
        if _debug:
            raise
        typer.echo(f"error: {error}; `openafm doctor` says what is missing", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def terminal() -> "Console":
    """The terminal; where there is none (a log, a pipe), wide enough for the tables."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=120)


def run_folder(run: Path) -> Path:
    """The run's folder by its path or its name."""
    for folder in (run, RUNS / run):
        if (folder / "run.json").is_file():
            return folder
    raise ValueError(f"{run} is no run: no run.json in it, nor in {RUNS / run}; `openafm run nano` makes runs/nano")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"openafm {version('openafm')}")
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Options that stand before every verb."""
    global _debug
    _debug = debug
