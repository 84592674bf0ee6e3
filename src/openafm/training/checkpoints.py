"""Checkpoints of a running stage: weights, optimizer state, curve and position, all of one moment.

They live in a step's scratch folder and are replaced atomically. Only what is trained is kept: frozen weights come
from the stage's inputs again.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

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
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata={"state": json.dumps(state), "records": json.dumps(records)})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path.with_name(path.name + ".safetensors"))


@torch.no_grad()
def load_checkpoint(
    path: Path, model: nn.Module, optimizer: RMSPropMomentum, records: list[dict[str, Any]]
) -> tuple[int, int]:
    """Bring model, optimizer and `records` back to the checkpoint, if there is one; its step and tokens seen."""
    file = path.with_name(path.name + ".safetensors")
    if not file.exists():
        return 0, 0
    with safe_open(file, "pt") as tensors:
        metadata = tensors.metadata()
        names = set(tensors.keys())
        for name, parameter in _trained(model).items():
            parameter.copy_(tensors.get_tensor(f"weight.{name}"))
            state = {key: tensors.get_tensor(f"{key}.{name}") for key in ("v", "m") if f"{key}.{name}" in names}
            if state:
                optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}
    state = json.loads(metadata["state"])
    records[:] = json.loads(metadata["records"])
    optimizer.updates, optimizer.skipped = state["updates"], state["skipped"]
    return state["step"], state["tokens"]


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
