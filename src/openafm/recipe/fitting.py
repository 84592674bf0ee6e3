"""The verbs `import`, `compress` and `adapt`: a model of the user's through the recipe `fit`, by the ordinary runner.

Each is the recipe with overrides, kept in run.json as `openafm run` keeps them, so resuming, manifests and `status`
work alike. A task becomes two steps, `data_TASK` and `adapt_TASK`; each task's package goes on from the last one's.
"""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from openafm.recipe import recipe as recipes
from openafm.recipe.runner import run_to_the_end

RECIPE, LAST = "fit", "recovery"
TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
RESERVED = ("recovery", "none", "base", "control")
"""Names that mean something else to `chat` and to the package."""


def import_to(model: str, out: Path | None) -> tuple[Path, str]:
    """Write the model to the folder `out` (default `models/NAME`), whole or not at all; the folder and a line on it."""
    from openafm.model.checkpoint import load_model
    from openafm.model.importing import import_any

    folder = out or Path("models") / run_name(model)
    if folder.exists():
        raise ValueError(f"{folder} exists: delete it, or choose another with --out")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        name = import_any(model, partial)
        shape = load_model(partial).config
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder, f"{name}: {shape.parameters / 1e6:.1f}M parameters, vocabulary {shape.vocab_size:,}"


def compress(model: str, runs_dir: Path, overrides: Sequence[str], until: str, console: Console) -> Path:
    """Compress the model and train its recovery adapter; the run's folder, named after the model."""
    name = run_name(model)
    given = [f"name={name}", f"import.model={json.dumps(_absolute(model))}", *overrides]
    wanted = recipes.load(RECIPE, given)
    _refuse_another_model(runs_dir / wanted.name, given[1])
    run_to_the_end(wanted, runs_dir, console, command=[RECIPE, *given], until=until)
    return runs_dir / wanted.name


def compress_uncalibrated(model: str, runs_dir: Path, console: Console) -> tuple[Path, str]:
    """Write the package of the folder `model` to RUNS_DIR/NAME-uncalibrated, whole or not at all; a line on it."""
    from rich.progress import track

    from openafm.compression.package import sizes
    from openafm.compression.streaming import palettize_checkpoint
    from openafm.files import cores

    source = Path(model)
    if not (source / "config.json").is_file():
        raise ValueError(
            f"--uncalibrated reads a folder with config.json and safetensors; first: openafm import {model}"
        )
    folder = runs_dir / f"{run_name(model)}-uncalibrated"
    if folder.exists():
        raise ValueError(f"{folder} exists: delete it, or choose another folder with --runs-dir")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        package, lost = palettize_checkpoint(
            source, partial / "model.afm", lambda names, what: track(names, what, console=console), threads=cores()
        )
        size = sizes(package)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    spent = "{projection_bits_per_weight:.2f} bits a projection, {package_bits_per_weight:.2f} in all".format(**size)
    return folder, f"{size['megabytes']:.1f} MB, {spent}; squared error of the weights {lost:.3%}, all unpack as packed"


def adapt(model: str, task: str, data: Path, runs_dir: Path, overrides: Sequence[str], console: Console) -> Path:
    """Train the adapter `task` on the examples in `data`, after what its run lacks; the folder of its package.

    `model` is what `compress` took, or a run that has a step `recovery`.
    """
    if not TASK.fullmatch(task) or task in RESERVED or task.startswith("recovery-"):
        raise ValueError(f"{task!r} cannot name a task: use up to 40 letters, digits, - and _, a letter or digit first")
    if not data.is_file():
        raise ValueError(f"{data} does not exist: give a JSON Lines file of examples")
    folder, command = _run_of(model, runs_dir)
    command = [*command, *overrides, *_task_steps(folder, command, task, data)]
    wanted = recipes.load(command[0], command[1:])
    wanted.find(LAST)
    last = [name for name in wanted.steps if name.startswith("adapt_")][-1]  # its package carries every task
    run_to_the_end(wanted, folder.parent, console, command=command, until=last)
    return folder / last


def run_name(model: str) -> str:
    """What a model's run is called: the last part of its path or Hub name."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model.rstrip("/").rpartition("/")[2].removesuffix(".gguf")).lstrip(".-")
    if not name:
        raise ValueError(f"{model!r} has no name: give a folder, a .gguf file or a name on the Hub")
    return name


def _absolute(model: str) -> str:
    """A path that holds from anywhere; a Hub name as it is."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


def _refuse_another_model(folder: Path, given: str) -> None:
    """A run that was made of another model of the same name is not overwritten."""
    path = folder / "run.json"
    if path.exists() and given not in (command := json.loads(path.read_text())["command"]):
        other = next((word for word in command if word.startswith("import.model=")), "another recipe")
        raise ValueError(f"{folder} is a run of {other}: choose another name with --set name=NAME")


def _run_of(model: str, runs_dir: Path) -> tuple[Path, list[str]]:
    """The run that `model` names or would be compressed in, and its command."""
    for folder in (Path(model), runs_dir / model):
        if (folder / "run.json").is_file():
            return folder, json.loads((folder / "run.json").read_text())["command"]
    folder, given = runs_dir / run_name(model), f"import.model={json.dumps(_absolute(model))}"
    _refuse_another_model(folder, given)
    if (folder / "run.json").is_file():
        return folder, json.loads((folder / "run.json").read_text())["command"]
    return folder, [RECIPE, f"name={folder.name}", given]


def _task_steps(folder: Path, command: Sequence[str], task: str, data: Path) -> list[str]:
    """Overrides that add the task's steps, or give a known task other data in its place."""
    read = f"steps.data_{task}={{run: task_data, with: {{data: {json.dumps(str(data.resolve()))}}}}}"
    if any(word.startswith(f"steps.adapt_{task}=") for word in command):
        return [read]
    before = recipes.load(command[0], command[1:])
    makers = [LAST, *(step.name for step in before.steps.values() if step.stage == "task_adapter")]
    made = [name for name in makers if name == LAST or (folder / name / "manifest.json").exists()]
    inputs = f"{{package: {made[-1]}, examples: data_{task}}}"
    return [read, f"steps.adapt_{task}={{run: task_adapter, seconds: 100, inputs: {inputs}, with: {{name: {task}}}}}"]
