"""Checkpoints of a running stage: weights, optimizer state, curve and position, all of one moment.

They live in a step's scratch folder and are replaced atomically. Only what is trained is kept: frozen weights come
from the stage's inputs again.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from openafm.training.optimizers import RMSPropMomentum


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: RMSPropMomentum, records: list[dict[str, Any]], step: int, tokens: int
) -> None:
    """Write `path`.safetensors; an older one stays until the new one is whole."""
    tensors = {}
    for name, parameter in _trained(model).items():
        tensors[f"weight.{name}"] = parameter.detach().contiguous()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = value.contiguous()
    state = {"step": step, "tokens": tokens, "updates": optimizer.updates, "skipped": optimizer.skipped}
    metadata = {"state": json.dumps(state), "records": json.dumps(records)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata={**metadata, "digest": _digest(tensors, metadata)})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path.with_name(path.name + ".safetensors"))


@torch.no_grad()
def load_checkpoint(
    path: Path, model: nn.Module, optimizer: RMSPropMomentum, records: list[dict[str, Any]]
) -> tuple[int, int]:
    """Bring model, optimizer and `records` back to the checkpoint, if there is one; its step and tokens seen.

    Raises ValueError when the file is damaged: weights of a flipped bit would train on to other bytes.
    """
    file = path.with_name(path.name + ".safetensors")
    if not file.exists():
        return 0, 0
    try:
        tensors, state, kept_records = _read(file)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the checkpoint {file} is damaged ({error}): delete it, the step starts anew then") from error
    for name, parameter in _trained(model).items():
        parameter.copy_(tensors[f"weight.{name}"])
        moments = {key: tensors[f"{key}.{name}"] for key in ("v", "m") if f"{key}.{name}" in tensors}
        if moments:
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in moments.items()}
    records[:] = kept_records
    optimizer.updates, optimizer.skipped = state["updates"], state["skipped"]
    return state["step"], state["tokens"]


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[dict[str, Any]]]:
    """Tensors, position and curve of a checkpoint; an error of some kind when anything in it is not as written."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if metadata["digest"] != _digest(tensors, metadata):
        raise ValueError("its checksum is wrong")
    return tensors, json.loads(metadata["state"]), json.loads(metadata["records"])


def _digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """SHA-256 over position, curve, and names and bytes of the tensors."""
    total = hashlib.sha256((metadata["state"] + metadata["records"]).encode())
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
