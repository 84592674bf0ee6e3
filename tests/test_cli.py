"""The verbs: exit codes that scripts can use, one line for an error, a quick --help."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from openafm.cli import app
from openafm.recipe import steps
from openafm.stage import Hardware
from openafm.training import hardware

VERBS = [
    "run", "status", "why", "fetch", "import", "compress", "adapt", "chat", "serve", "label", "export", "report",
    "bench", "doctor", "evaluate",
]  # fmt: skip
TOYS = """
from pathlib import Path
from openafm.stage import Config, Context

class MakeConfig(Config):
    size: int = 1
    error: str = ""

def make(config: MakeConfig, context: Context):
    if config.error == "failed":
        raise ValueError("nothing can be made")
    if config.error == "interrupted":
        raise KeyboardInterrupt
    (context.out / "made.txt").write_text("x" * config.size)
    return {"size": config.size}
"""


@pytest.fixture
def verb(tmp_path, monkeypatch):
    """Call a verb in an empty folder that holds the recipe `toy`."""
    (tmp_path / "cli_toys.py").write_text(TOYS)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/toy.yaml").write_text("name: toy\nsteps:\n  first: {run: make, seconds: 1}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(steps.STAGES, "make", ("cli_toys:make", "makes"))
    monkeypatch.setattr(hardware, "probe", lambda: (Hardware(), {}))
    monkeypatch.setattr("openafm.recipe.summary._write_report", lambda run: None)
    yield lambda *arguments: CliRunner().invoke(app, list(arguments))
    sys.modules.pop("cli_toys", None)
    steps.signature.cache_clear()


def test_run_status_and_run_again(verb):
    first = verb("run", "toy", "--set", "first.size=3")
    assert first.exit_code == 0 and "size 3" in first.output and "openafm status runs/toy" in first.output
    (state,) = json.loads(verb("status", "toy", "--json").output)
    assert (state["step"], state["state"], state["bytes"]) == ("first", "current", 3)
    assert "nothing to do: 1 step current" in verb("run", "toy", "--set", "first.size=3").output
    assert "config size: 3 -> 1" in verb("run", "toy").output
    assert "asked for by --from" in verb("run", "toy", "--from", "first").output
    assert "current" in verb("status", "runs/toy").output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "toy", "--set", "first.sise=3"], 2, "error: --set first.sise=3: steps.first.with.sise: unknown key"),
        (["run", "toys"], 2, "error: no recipe called 'toys'; known recipes: "),
        (["run", "toy", "--until", "frist"], 2, "error: no step called 'frist' in recipe toy; did you mean 'first'?"),
        (["run", "toy", "--set", "first.error=failed"], 1, "error: step first: nothing can be made"),
        (
            ["run", "toy", "--set", "first.error=interrupted"],
            130,
            "interrupted in step first: the same command",
        ),
        (["status", "nano"], 2, "error: nano is no run"),
        (["why", "https://a.example", "--run", "none"], 2, "error: none is no run"),
        (["bench", "nothing"], 2, "error: no benchmark called 'nothing'"),
        (["run"], 2, "Missing argument"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(verb, arguments, code, message):
    result = verb(*arguments)
    assert result.exit_code == code
    assert message in result.output.replace("\n", " ") and "Traceback" not in result.output


def test_debug_raises(verb):
    assert isinstance(verb("--debug", "run", "toys").exception, ValueError)


def test_bench_hands_its_options_on(verb):
    Path("benchmarks").mkdir()
    Path("benchmarks/beside_echo.py").write_text("import sys\nwords = sys.argv[1:]")
    Path("benchmarks/echo.py").write_text("from beside_echo import words\nprint(words)")
    assert verb("bench", "echo", "--json", "--n", "3").output == "['--json', '--n', '3']\n"


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_help_with_an_example(name):
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0 and f"Example: openafm {name}" in result.output


def test_doctor_lists_what_is_missing_with_the_remedy():
    result = CliRunner().invoke(app, ["doctor", "--json"])
    checks = {check["name"]: check for check in json.loads(result.output)}
    assert checks["python"]["good"] and checks["sandbox"]["remedy"] and checks["packages"]["found"]
    assert result.exit_code == (0 if all(check["good"] or not check["needed"] for check in checks.values()) else 1)


def test_help_does_not_import_the_heavy_packages():
    program = (
        "import sys, openafm.cli; heavy = {'torch', 'daft', 'numpy', 'rich.progress', 'pydantic'} & set(sys.modules);"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_uncalibrated_runs_no_recipe(verb):
    result = verb("compress", "there", "--uncalibrated", "--set", "compress.group=8")
    assert result.exit_code == 2 and "leave out --set" in result.output
