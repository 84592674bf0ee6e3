"""Models and adapters for other programs (`openafm export MODEL --to hf|peft|gguf|coreml`).

hf: a folder that transformers, vLLM and llama.cpp's converter open as `LlamaForCausalLM`, or `Qwen3ForCausalLM` where
queries and keys are normalised; a package is dequantized. peft: one of a package's adapters as PEFT saves it. gguf and
coreml have modules of their own.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from openafm.adapters.peft import write_peft
from openafm.engine.package import open_package
from openafm.model import ModelConfig
from openafm.serving.coreml_export import export_coreml
from openafm.serving.gguf_export import export_gguf
from openafm.serving.opening import RECOVERY, latest_model, merged, tokenizer_folder
from openafm.serving.tokenizer_export import write_tokenizer

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


FORMS = ("hf", "peft", "gguf", "coreml")


def export(
    model: Path,
    out: Path,
    to: str,
    adapter: str | None = None,
    kind: str | None = None,
    length: int | None = None,
) -> str:
    """Write `model` as one of FORMS; a line on it. Raises ValueError for what cannot be."""
    if to not in FORMS:
        raise ValueError(f"--to {to}: choose {', '.join(FORMS)}")
    if kind is not None and to in ("peft", "coreml"):
        raise ValueError(f"--type {kind}: {to} keeps the package's own types; leave --type out")
    if length is not None and to != "coreml":
        raise ValueError(f"--length {length}: only a Core ML program has a fixed length; leave --length out")
    if to == "hf":
        return export_hf(model, out, adapter, kind or "bf16")
    if to == "gguf":
        return export_gguf(model, out, kind or "f16", adapter)
    if to == "peft":
        return export_peft(model, out, adapter or RECOVERY)
    return export_coreml(model, out, adapter, length)


def export_hf(model: Path, out: Path, adapter: str | None = None, kind: str = "bf16") -> str:
    """Write the model in `model` (a run, model folder or package), `adapter` merged into it; a line on it."""
    if kind not in DTYPES:
        raise ValueError(f"--type {kind}: a Hugging Face checkpoint takes {', '.join(DTYPES)}")
    dtype = DTYPES[kind]
    found, transformer = merged(model, adapter)
    weights = {name: tensor.detach().to(dtype) for name, tensor in transformer.state_dict().items()}
    beyond = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if beyond:
        raise ValueError(f"{beyond[0]} has weights that {kind} cannot hold: use --type f32")
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(hugging_face_config(transformer.config, dtype), indent=1) + "\n")
    write_tokenizer(tokenizer_folder(found), out)
    return f"{out}: {transformer.config.parameters / 1e6:.1f}M parameters in {kind} from {found}"


def hugging_face_config(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The shape as Hugging Face's config.json says it."""
    kind, name = ("qwen3", "Qwen3ForCausalLM") if config.qk_norm else ("llama", "LlamaForCausalLM")
    return {
        "architectures": [name],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "tie_word_embeddings": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def export_peft(model: Path, out: Path, adapter: str) -> str:
    """Write one adapter of the package in `model`; a line on it. Raises ValueError where there is none so called."""
    package = open_package(latest_model(model))
    found = package.adapters.load(adapter)
    layers = {key.rpartition(".")[0] for key in found.state}
    write_peft(found, out, _targets(layers, set(package.layers)))
    return f"{out}: adapter {adapter} of rank {found.rank} from {package.folder}"


def _targets(layers: set[str], every: set[str]) -> list[str]:
    """The adapted layers as PEFT names them: `q_proj` where every layer so called is, else each by its full name."""
    kinds = {layer.rpartition(".")[2] for layer in layers}
    whole = {layer for layer in every if layer.rpartition(".")[2] in kinds} == layers
    return sorted(kinds if whole else layers)
