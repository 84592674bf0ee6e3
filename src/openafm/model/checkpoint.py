"""A model folder: `model.safetensors`, `config.json`, and the tokenizer beside them."""

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from openafm.model.config import load_config
from openafm.model.transformer import Transformer

TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")


def save_model(model: Transformer, folder: Path, tokenizer: Path | None = None) -> None:
    """Write weights and shape into `folder`, and copy the tokenizer files of the folder `tokenizer`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.config.model_dump(), indent=1) + "\n")
    for name in TOKENIZER_FILES:
        if tokenizer is not None and (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, folder / name)


def load_model(folder: Path, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> Transformer:
    """Read a model folder. Raises ValueError naming the file where it is damaged or does not fit its config."""
    config = load_config(folder)
    path = folder / "model.safetensors"
    try:
        weights = load_file(path)
        last = f"model.layers.{config.n_layers - 1}."
        if not any(name.startswith(last) for name in weights):  # told before a thousand layers are made in vain
            raise RuntimeError(f"it has no {last}*")
        with torch.device("meta"):
            model = Transformer(config, dropout)
        model.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, assign=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ValueError(f"{path} is damaged or does not fit config.json; make it again ({error})") from error
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()
