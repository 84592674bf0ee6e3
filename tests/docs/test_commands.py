"""Every command that README and docs print: the short ones run, the long ones are parsed against what they call."""

import ast
import json
import re
import shutil
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import typer
from tests.docs.commands import ROOT, Command, _program, commands
from typer.testing import CliRunner

from openafm.cli import app
from openafm.recipe import devices
from openafm.recipe import recipe as recipes

ELSEWHERE = {
    "git": "the address of the repository is the reader's",
    "bash": "the page's own script",
    "cd": "the shell's own",
    "source": "the shell's own",
    "mkdir": "the system's own",
    "cp": "the system's own",
    "wc": "the system's own",
    "cat": "the system's own",
    "sudo": "installs packages of the system",
    "xcode-select": "macOS",
    "brew": "macOS",
    "open": "macOS",
    "chromium": "draws the README's picture of a report; the report is opened in it by tests/reporting/test_browser.py",
    "sed": "changes one file of the page's example; the result is checked where it is used",
    "srun": "Slurm's; what it starts is checked as torchrun's command",
    "docker": "no image registry could be reached; what runs in the container is checked as openafm's command",
    "tensorboard": "a server of its own; its files are read back by tests/recipe/test_live.py",
}
"""Programs that are not run and not parsed, and why."""
PLACEHOLDERS = {
    "RECIPE": "nano",
    "CATALOGUE": "nano",
    "N": "2",
    "KIND": "H100",
    "NAME": "palettize",
    "PORT": "8000",
    "STEP": "teacher",
}
"""Words that stand for the reader's own, and a value to parse in their place."""
LONG = {
    "run": "a run takes minutes to hours; the recipe, its steps and overrides are checked",
    "plan": "dry runs of billions of weights take a minute; tests/recipe/test_plan.py has small ones",
    "fetch": "downloads",
    "crawl": "asks other hosts; tests/data/test_crawl.py crawls one on the loopback",
    "import": "needs the model it names; tests/recipe/test_fitting.py imports one",
    "compress": "minutes, and needs the model it names; tests/recipe/test_fitting.py compresses one",
    "adapt": "minutes, and needs the model it names; tests/recipe/test_fitting.py adapts one",
    "serve": "a server; tests/serving has it on the loopback",
    "evaluate": "minutes to hours; tests/evaluation has its parts",
    "bench": "minutes; the script and its options are checked",
    "extract": "needs the page it names; tests/test_cli.py has one",
    "licences": "lists what is installed; tests/recipe/test_licences.py calls it",
    "chat": "talks; tests/end_to_end/test_tiny.py and tests/serving/test_chat.py talk to it",
}
"""Verbs that are parsed only, and why."""
SHORT = ("status", "why", "data", "report", "label", "export", "doctor")
"""Verbs that are run where they are about a run that the tests have."""
FOUND = [command for command in commands() if command.words]


def is_about_the_tests_run(words: tuple[str, ...]) -> bool:
    """Whether a command is about the run nano or tiny alone, so that it can be run on the tests' run of tiny."""
    given = " ".join(words)
    named = re.search(r"(?:^|\s)(?:runs/)?(?:nano|tiny)(?:\s|$)", given)
    needed = re.search(
        r"[A-Z]{3,}|…|\.\.\.|whentouse|--to (?:coreml|peft)|--adapter|--labeller|--watch|--export", given
    )
    return bool(named and not needed) or words[1] == "doctor"


def parse(words: list[str]) -> tuple[str, dict]:
    """The verb and its parameters, as the command line reads them; raises for what it does not know."""
    group = typer.main.get_command(app)
    context = group.make_context("openafm", list(words))
    name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
    while hasattr(command, "resolve_command"):
        context = command.make_context(name, rest, parent=context)
        inner, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        name = f"{name} {inner}"
    inside = command.make_context(name, rest, parent=context)
    return name, inside.params | {"rest": inside.args}


def check_openafm(words: list[str], inline: bool) -> None:
    words = [PLACEHOLDERS.get(word, word) for word in words]
    if (inline and not words) or words[0].isupper():
        return  # "openafm" and a word for any verb
    if (inline and len(words) == 1) or words == ["--debug"]:
        assert words[0] in typer.main.get_command(app).commands or words[0].startswith("--")
        return
    if words[-1] in ("--help", "--version"):
        return
    verb, given = parse(words)
    sets = [item.replace("$HOME", "/home/me").replace("$PWD", "/home/me") for item in given.get("set_") or []]
    if verb == "run":
        wanted = recipes.load(known_recipe(given["recipe"]), sets)
        for step in (given["only"], given["from_"], given["until"]):
            assert step is None or wanted.find(step)
    elif verb in ("compress", "adapt"):
        recipes.load("fit", ["name=any", 'import.model="any"', *sets])
    elif verb == "plan":
        recipes.load(known_recipe(given["recipe"]), sets)
        assert given["device"].lower() in devices.DEVICES
    elif verb == "fetch":
        assert (ROOT / f"recipes/sources/{given['catalogue']}.yaml").is_file()
    elif verb == "bench":
        check_script(ROOT / f"benchmarks/{given['name'].replace('-', '_')}.py", given["rest"])


def known_recipe(name: str) -> str:
    return "nano" if name in ("RECIPE", "ablations/NAME") else name


def check_script(path: Path, words: list[str]) -> None:
    """A script of ours: it is there, and has the options that it is given."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    options = {"json", "repeats"} if "harness" in path.read_text() else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "options":
            options |= {keyword.arg.replace("_", "-") for keyword in node.keywords if keyword.arg}
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("--"):
            options.add(node.value[2:])
    asked = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
    assert asked <= options, f"{path.name} has no --{', --'.join(sorted(asked - options))}"


def check_torchrun(words: list[str], inline: bool) -> None:
    from torch.distributed.run import get_args_parser

    words = [PLACEHOLDERS.get(word, word) for word in words]
    if inline and "-m" not in words:  # an option that the text speaks of
        words += ["-m", "openafm", "run", "nano"]
    get_args_parser().parse_args(words)
    at = words.index("-m")
    assert words[at + 1] == "openafm"
    check_openafm(words[at + 2 :], False)


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name, is_variable, value = word.partition("=")
        if not is_variable:
            assert re.search(rf"^{name}:.*##", makefile, re.M), f"no target {name}"
            continue
        assert f"$({name})" in makefile, f"the Makefile reads no {name}"
        if name == "RECIPE":
            recipes.load(value, [])
        elif name == "ARGS" and "run" in words:
            check_openafm(["run", "nano", *value.split()], False)


def check_pip(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in re.findall(r"openafm\[([a-z,]+)\]", " ".join(words)):
        assert set(extra.split(",")) <= project["optional-dependencies"].keys()


def check_python(words: list[str]) -> None:
    if words == ["-c"]:  # the interpreter's own option, in running text
        return
    if words[0].endswith(".py") and (ROOT / words[0]).is_file():
        check_script(ROOT / words[0], words[1:])
    else:  # a script that the page itself prints
        texts = [page.read_text() for page in (ROOT / "docs").glob("*.md")]
        assert any(f"> {words[0]}" in text for text in texts), f"no script {words[0]}"


def check_curl(words: list[str], shortened: bool) -> None:
    server = "".join(path.read_text() for path in sorted((ROOT / "src/openafm/serving").glob("*.py")))
    urls = [word for word in words if re.match(r"(https?://)?(localhost|127\.0\.0\.1)", word)]
    for url in urls:
        path = re.sub(r"^(https?://)?[^/]+", "", url)
        assert f'"{path}"' in server, f"the server has no {path}"
    for option, body in pairwise(words):
        if option == "-d" and "…" not in body:
            json.loads(body)
    assert urls or shortened


def check(command: Command) -> None:
    program = _program(command.words)
    at = next(i for i, word in enumerate(command.words) if word.rpartition("/")[2] == program)
    words = list(command.words[at + 1 :])
    match program:
        case "openafm":
            check_openafm(words, command.inline)
        case "make":
            check_make(words)
        case "torchrun":
            check_torchrun(words, command.inline)
        case "pip":
            check_pip(words)
        case "python" | "python3":
            check_python(words)
        case "curl":
            check_curl(words, command.shortened)
        case "pytest":
            assert all((ROOT / word).exists() for word in words if not word.startswith("-"))
        case "docker" | "srun":
            assert program in ELSEWHERE
            inside = "torchrun" if program == "srun" else "openafm"
            if inside in words and "build" not in words:
                rest = words[words.index(inside) + 1 :]
                check_torchrun(rest, False) if program == "srun" else check_openafm(rest, False)
        case _:
            assert program in ELSEWHERE, f"{program} is neither checked nor in the list of exceptions"


@pytest.mark.parametrize("command", FOUND, ids=str)
def test_what_is_printed_can_be_typed(command):
    """Verb, arguments, options exist; recipes, steps, overrides hold; scripts, targets, extras and routes exist."""
    check(command)


def test_every_verb_is_run_or_excused():
    verbs = set(typer.main.get_command(app).commands)
    assert verbs <= set(LONG) | set(SHORT), f"say of {verbs - set(LONG) - set(SHORT)} whether it is short or long"
    printed = {command.words[1] for command in FOUND if command.words[0] == "openafm" and len(command.words) > 1}
    assert verbs - {"extract"} <= printed, f"no page shows {verbs - printed}"


def test_the_short_ones_run(tiny_run, tmp_path, monkeypatch):
    """On the tests' own run of tiny, under the names that the pages give it."""
    for name in ("nano", "tiny"):
        shutil.copytree(tiny_run, tmp_path / "runs" / name, copy_function=shutil.copy)
    monkeypatch.chdir(tmp_path)
    short = {c.words[1:] for c in FOUND if c.words[0] == "openafm" and len(c.words) > 1 and c.words[1] in SHORT}
    run = sorted(words for words in short if is_about_the_tests_run(("openafm", *words)))
    assert {words[0] for words in run} >= {"status", "data", "report", "doctor"}
    for words in run:
        for option in ("--markdown", "--export", "--out"):
            if option in words:
                Path(words[words.index(option) + 1]).parent.mkdir(parents=True, exist_ok=True)
        done = CliRunner().invoke(app, list(words))
        assert done.exit_code == 0, f"openafm {' '.join(words)}: {done.output}"
        assert done.output.strip()
