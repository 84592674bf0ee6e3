"""What `openafm chat` and `openafm serve` open: a run, a step's output, a model folder or a package."""

import json
from dataclasses import dataclass
from pathlib import Path

from openafm.adapters.lora import merge
from openafm.adapters.store import AdapterStore
from openafm.engine import Engine, TorchEngine, open_engine
from openafm.engine.package import ADAPTERS, find_package, open_package
from openafm.model import Transformer

ANSWERS = ("task_adapter", "recovery", "compress", "committee", "sft_best", "sft", "import_model")
"""Stages whose model has learned to answer, the furthest along a recipe first."""
CONTINUES = ("pretrain", "prune")
"""Stages whose model continues text."""
RECOVERY = "recovery"


@dataclass(frozen=True)
class Opened:
    """A model that is ready to answer."""

    path: Path
    """The folder that was opened: of a run, its furthest step."""
    name: str
    """What the model is called: the run's name, STEP of RUN as RUN-STEP, else the folder's name."""
    engine: Engine
    talks: bool
    """Whether the model answers; else it continues the text it is given."""
    short_calls: bool = False
    """Whether it has learned to call tools by signatures only, in the short form of small vocabularies."""

    @property
    def adapter(self) -> str | None:
        """The adapter to answer with unless another is asked for: a compressed model is meant to be used recovered."""
        return RECOVERY if RECOVERY in self.engine.adapters() else None

    @property
    def carried(self) -> AdapterStore | None:
        """The adapters that came with the model; None for a model folder, which has none."""
        package = find_package(self.path)
        return None if package is None else AdapterStore(package / ADAPTERS)

    @property
    def bytes(self) -> int:
        """Size of its weights on disk, without adapters."""
        folder = find_package(self.path) or self.path
        return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def open_model(folder: Path) -> Opened:
    """Load the best model in `folder`. Raises ValueError where there is none, or where it is damaged."""
    path = latest_model(folder)
    return Opened(path, name_of(folder), open_engine(path), stage_of(path) not in CONTINUES, _short_calls(path))


def latest_model(run: Path) -> Path:
    """Return the output of the furthest finished step of a run that holds a model, or `run` itself if it is a model.

    Of several steps of one stage it is the last: each committee and task adapter goes on from those before.
    Raises ValueError where no step with a model is finished yet.
    """
    if holds_model(run):
        return run
    known: list[dict[str, str]] = (
        json.loads((run / "run.json").read_text())["steps"] if (run / "run.json").exists() else []
    )
    for stage in (*ANSWERS, *CONTINUES):
        for step in reversed([step["name"] for step in known if step["stage"] == stage]):
            if (run / step / "manifest.json").exists() and holds_model(run / step):
                return run / step
    raise ValueError(f"{run} holds no finished model yet: run its recipe, at least until its first model")


def merged(model: Path, adapter: str | None) -> tuple[Path, Transformer]:
    """The folder that `model` (a run, model folder or package) stands for, and its model with `adapter` merged in."""
    found = latest_model(model)
    transformer = TorchEngine.load(found).use(adapter)
    merge(transformer)
    return found, transformer


def tokenizer_folder(found: Path) -> Path:
    """Where the tokenizer's files lie: in the package, or in the model folder itself."""
    return found if (found / "config.json").exists() else open_package(found).folder


def stage_of(folder: Path) -> str | None:
    """The stage that made a step's output; None for a folder that came from elsewhere."""
    path = folder / "manifest.json"
    return json.loads(path.read_text())["stage"] if path.exists() else None


def _short_calls(found: Path) -> bool:
    """Whether the run that made the model has tool data of the short form only (openafm.synthesis.tool_use)."""
    run = found.resolve().parent / "run.json"
    steps = json.loads(run.read_text())["steps"] if run.exists() else []
    manifests = [run.parent / step["name"] / "manifest.json" for step in steps if step["stage"] == "tool_data"]
    configs = [json.loads(manifest.read_text())["config"] for manifest in manifests if manifest.exists()]
    return bool(configs) and not any(config["library"] for config in configs)


def holds_model(folder: Path) -> bool:
    """Whether the folder is or holds a package, or is a model folder."""
    return find_package(folder) is not None or (folder / "model.safetensors").exists()


def name_of(folder: Path) -> str:
    """What a model is called: STEP of RUN as RUN-STEP, else the folder's name."""
    folder = folder.resolve()
    if folder.name == "model.afm":  # every package of a run is called so
        folder = folder.parent
    name = folder.name.removesuffix(".afm")
    return f"{folder.parent.name}-{name}" if (folder.parent / "run.json").exists() else name
