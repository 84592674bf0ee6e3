"""The verbs `import`, `compress` and `adapt`: a model of the user's through the recipe `fit`, by the ordinary runner.

Each is the recipe with overrides, kept in run.json as `openafm run` keeps them, so resuming, manifests and `status`
work alike. A task becomes two steps, `data_TASK` and `adapt_TASK`; each task's package goes on from the last one's.
"""

import json
import math
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from openafm.adapters.peft import CONFIG as PEFT
from openafm.recipe import recipe as recipes
from openafm.recipe.runner import run_to_the_end
from openafm.synthesis.ready.tasks import READY

RECIPE, LAST = "fit", "recovery"
TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
RESERVED = ("recovery", "none", "base", "control")
"""Names that mean something else to `chat` and to the package."""


def import_to(model: str, out: Path | None) -> tuple[Path, str]:
    """Write the model to the folder `out` (default `models/NAME`), whole or not at all; the folder and a line on it."""
    from openafm.model.checkpoint import load_model
    from openafm.model.importing import import_any

    if (Path(model) / PEFT).exists():
        return import_adapter(Path(model), out or Path("adapters") / run_name(model))
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


def import_adapter(source: Path, folder: Path) -> tuple[Path, str]:
    """Write the adapter that PEFT saved in `source` to `folder`, whole or not at all; the folder and a line on it.

    Matrices that float16 cannot hold exactly are rounded, and the line says by how much.
    """
    from openafm.adapters.peft import read_peft
    from openafm.adapters.store import AdapterStore

    if folder.exists():
        raise ValueError(f"{folder} exists: delete it, or choose another with --out")
    adapter = read_peft(source)
    worst = max(float((tensor.float() - tensor.half().float()).abs().max()) for tensor in adapter.state.values())
    if not math.isfinite(worst):
        raise ValueError(f"{source}: a weight is not finite, or too large for the float16 that adapters are stored in")
    with tempfile.TemporaryDirectory(dir=folder.parent.resolve() if folder.parent.exists() else None) as partial:
        store = AdapterStore(Path(partial))
        store.save(folder.name, adapter)
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(Path(partial) / folder.name, folder)
    rounded = "float16 holds it exactly" if worst == 0 else f"rounded to float16, by at most {worst:.1e}"
    return folder, f"adapter of rank {adapter.rank}, {adapter.parameters / 1e6:.2f}M parameters, {rounded}"


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


@dataclass(frozen=True)
class Wanted:
    """A task's adapter as `openafm adapt` was asked for it."""

    task: str
    """A ready task (openafm.synthesis.ready.tasks), or a name for one's own."""
    data: Path | None = None
    name: str = ""
    """Of the adapter; empty for the task's."""
    rank: int | None = None
    made: int = 0
    writer: str = ""
    writer_model: str = ""

    def steps(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Configs of the two steps, its data and its training."""
        data: dict[str, Any] = {"data": str(self.data.resolve()) if self.data else "", "made": self.made}
        data |= {"task": self.task} if self.task in READY else {}
        if self.writer:
            where = self.writer if self.writer.startswith("http") else str(Path(self.writer).expanduser().resolve())
            data["writer"] = {"where": where, "model": self.writer_model}
        longest = READY[self.task].longest if self.task in READY else 0
        room = {"max_tokens": 2 * longest, "sequence_length": 512} if longest else {}
        return data, {"name": self.name or self.task, "patience": 2, "rank": self.rank, **room}


def adapt(model: str, wanted: Wanted, runs_dir: Path, overrides: Sequence[str], console: Console) -> Path:
    """Train the adapter that is wanted, after what its run lacks; the folder of its package.

    `model` is what `compress` took, or a run that has a step `recovery`.
    """
    name = wanted.name or wanted.task
    if not TASK.fullmatch(name) or name in RESERVED or name.startswith("recovery-"):
        raise ValueError(f"{name!r} cannot name a task: use up to 40 letters, digits, - and _, a letter or digit first")
    if wanted.data is None and not wanted.made:
        raise ValueError("give examples with --data FILE, or for summaries and tags a number to make by rule, --made N")
    if wanted.data is not None and not wanted.data.is_file():
        raise ValueError(f"{wanted.data} does not exist: give a JSON Lines file of examples, or an mbox")
    folder, command = _run_of(model, runs_dir)
    command = [*command, *_task_steps(folder, command, name, wanted), *overrides]
    recipe = recipes.load(command[0], command[1:])
    recipe.find(LAST)
    last = [step for step in recipe.steps if step.startswith("adapt_")][-1]  # its package carries every task
    run_to_the_end(recipe, folder.parent, console, command=command, until=last)
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


def _task_steps(folder: Path, command: Sequence[str], name: str, wanted: Wanted) -> list[str]:
    """Overrides that add the task's steps, or give a known task other data and options in their place."""
    data, training = wanted.steps()
    read = f"steps.data_{name}={json.dumps({'run': 'task_data', 'with': data})}"
    known = next((word for word in reversed(command) if word.startswith(f"steps.adapt_{name}=")), "")
    before = recipes.load(command[0], command[1:])
    if known:
        inputs = before.steps[f"adapt_{name}"].inputs
    else:
        makers = [LAST, *(step.name for step in before.steps.values() if step.stage == "task_adapter")]
        made = [maker for maker in makers if maker == LAST or (folder / maker / "manifest.json").exists()]
        inputs = {"package": made[-1], "examples": f"data_{name}"}
    step = {"run": "task_adapter", "seconds": 100, "inputs": inputs, "with": training}
    return [read, f"steps.adapt_{name}={json.dumps(step)}"]
