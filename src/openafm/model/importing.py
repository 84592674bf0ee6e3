"""Any open dense model into the recipe (step `import`, `openafm import MODEL`).

A model is a folder as Hugging Face writes it, a `.gguf` file, a model folder of this project, or a name on the Hugging
Face Hub (`owner/name`, `owner/name@revision`). Only safetensors, GGUF and JSON are read.
"""

import json
import re
import shutil
from pathlib import Path

from openafm.model.checkpoint import TOKENIZER_FILES, load_model
from openafm.model.config import load_config
from openafm.model.gguf import import_gguf
from openafm.model.huggingface import import_folder
from openafm.stage import Config, Context, Metrics

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
HUB_FILES = ("*.safetensors", "*.json", "*.jinja")


class ImportConfig(Config):
    """Which model."""

    model: str = ""
    """Folder, `.gguf` file or Hub name; empty takes the step's input `model`."""

    def files(self) -> list[Path]:
        """What the step reads from outside the run: the model's files, where it is not on the Hub."""
        path = Path(self.model)
        if not self.model or not path.exists():
            return []
        return [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())


def import_model(config: ImportConfig, context: Context, *, model: Path | None = None) -> Metrics:
    """Write the model as a model folder, and read it back."""
    if not config.model and model is None:
        raise ValueError("no model is named: set `model` to a folder, a .gguf file or a name on the Hub")
    context.report("import", 0, None)
    name = import_any(config.model or str(model), context.out)
    shape = load_model(context.out).config
    return {
        "headline": f"{name}: {shape.parameters / 1e6:.1f}M parameters, vocabulary {shape.vocab_size:,}",
        "name": name,
        "parameters": shape.parameters,
        **shape.model_dump(),
    }


def import_any(model: str, folder: Path) -> str:
    """Write the named model to `folder`; what to call it. Raises ValueError with the remedy for what cannot be."""
    path = Path(model).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return import_gguf(path, folder)
    if path.is_dir():
        return _import_directory(path, folder)
    if not HUB_NAME.fullmatch(model):
        raise ValueError(f"{model}: no folder, no .gguf file, and no name on the Hugging Face Hub (owner/name)")
    import_folder(_from_hub(model), folder)
    return model


def _import_directory(path: Path, folder: Path) -> str:
    """A folder of Hugging Face's form, or one of ours, which is copied."""
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} holds no config.json: give a model folder, or a .gguf file itself")
    if "d_model" not in json.loads((path / "config.json").read_bytes()):
        import_folder(path, folder)
        return path.name
    load_config(path)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", *TOKENIZER_FILES, "card.json"):
        if (path / name).is_file():
            shutil.copyfile(path / name, folder / name)
    card = path / "card.json"
    return str(json.loads(card.read_bytes()).get("name", path.name)) if card.is_file() else path.name


def _from_hub(model: str) -> Path:
    """The files of a model on the Hub, downloaded into its own cache once."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise ValueError(f"{model} is on the Hugging Face Hub: pip install huggingface_hub, or give a folder") from None

    name, _, revision = model.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(HUB_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{model} cannot be had from the Hugging Face Hub ({first}): check the name and the network, "
            "or download it elsewhere and give the folder"
        ) from error
