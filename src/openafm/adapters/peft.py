"""Adapters as PEFT keeps them: `adapter_config.json` and `adapter_model.safetensors` (LoRA, one rank for all layers).

`read_peft` and `write_peft` are each other's inverse, to the bit, in whatever precision the matrices are; only what a
package carries is rounded to float16. `openafm import FOLDER` and `openafm export MODEL --to peft` use them.
"""

import json
from math import sqrt
from pathlib import Path
from typing import Any

from openafm.adapters.store import Adapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HALVES = {"lora_a": "lora_A", "lora_b": "lora_B"}
PREFIX = "base_model.model."
REFUSED = ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication")
"""Settings that our adapters have no counterpart of."""


def read_peft(folder: Path) -> Adapter:
    """Read a folder that `PeftModel.save_pretrained` wrote. Raises ValueError naming what cannot be taken over."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / CONFIG
    try:
        config = json.loads(path.read_bytes())
        kind, rank, alpha = config["peft_type"], int(config["r"]), float(config["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is missing or no PEFT configuration ({error!r}): save the adapter again") from error
    used = [key for key in REFUSED if config.get(key)] + [f"bias={config['bias']}"] * (
        config.get("bias", "none") != "none"
    )
    if kind != "LORA" or used:
        raise ValueError(f"{path}: {', '.join(used) or kind} has no counterpart here: train a plain LoRA without it")
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{folder / WEIGHTS} is missing or damaged ({error}): save the adapter as safetensors"
        ) from error
    names = {theirs: ours for ours, theirs in HALVES.items()}
    state = {}
    for key, tensor in tensors.items():
        layer, _, half = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if half not in names or tensor.ndim != 2:
            raise ValueError(f"{folder / WEIGHTS}: {key} is no half of a linear layer's adapter: leave that layer out")
        state[f"{layer}.{names[half]}"] = tensor
    scaled = alpha * sqrt(rank) if config.get("use_rslora") else alpha  # there the scale is alpha / sqrt(rank)
    origin = config.get("base_model_name_or_path") or "an unknown base"
    return Adapter(state, rank, scaled, None, f"trained with PEFT on {origin}")


def write_peft(adapter: Adapter, folder: Path, targets: list[str]) -> None:
    """Write the adapter for PEFT; `targets` are the adapted layers as it names them."""
    from safetensors.torch import save_file

    state = {}
    for key, tensor in adapter.state.items():
        layer, _, half = key.rpartition(".")
        state[f"{PREFIX}{layer}.{HALVES[half]}.weight"] = tensor.contiguous()
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": targets,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
