"""A checkpoint that does not fit in memory becomes a package: seconds and peak memory of `compress --uncalibrated`.

    openafm bench streaming --tokenizer runs/device/import --repeats 1
    openafm bench streaming --preset proxy --tokenizer runs/device/import

Weights are random, of the shape of a preset (afm-on-device: 2.7 billion parameters), in bfloat16 in shards of 1.5 GB,
as Hugging Face stores them; --tokenizer is a model folder whose tokenizer has the preset's vocabulary. It needs twice
the checkpoint's size in --folder, which is empty again afterwards. The limit is reading the checkpoint alone. The
package's own check, every tensor unpacked and compared with what was packed, is part of the time.
"""

import json
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from harness import alternate, options, show, timed
from openafm.model import ModelConfig, Transformer
from openafm.model.presets import PRESETS

SHARD = 1.5e9  # bytes


def main() -> None:
    o = options(__doc__, preset="afm-on-device", tokenizer="runs/device/import", folder=tempfile.gettempdir())
    config = PRESETS[o.preset]
    with tempfile.TemporaryDirectory(dir=o.folder) as folder:
        source = Path(folder) / "model"
        write_checkpoint(config, source, Path(o.tokenizer))
        peaks: list[float] = []
        figures = alternate({"openafm": lambda: compressed(source, Path(folder) / "runs", peaks)}, o.repeats)
        reading = timed(lambda: sum(len(path.read_bytes()) for path in source.glob("*.safetensors")))
    print(f"{config.parameters:,} parameters; peak memory {max(peaks):,.0f} MB")
    detail = {"preset": o.preset, "parameters": config.parameters, "peak_memory_mb": max(peaks)}
    show("streaming", "s", figures, limit=reading, limit_is="reading it", detail=detail, as_json=o.json, better="less")


def write_checkpoint(config: ModelConfig, folder: Path, tokenizer: Path) -> None:
    """Random weights in Hugging Face's layout."""
    folder.mkdir()
    shutil.copy(tokenizer / "tokenizer.json", folder)
    eos = json.loads((tokenizer / "tokenizer_config.json").read_text())["eos"]
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    settings = {
        "model_type": "qwen3" if config.qk_norm else "llama", "vocab_size": config.vocab_size,
        "hidden_size": config.d_model, "num_hidden_layers": config.n_layers, "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads, "head_dim": config.head_dim, "intermediate_size": config.d_ff,
        "rope_theta": config.rope_base, "rms_norm_eps": config.norm_eps, "hidden_act": "silu",
        "max_position_embeddings": config.max_length, "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings))
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Transformer(config).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    places: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    for number, (name, shape) in enumerate(shapes.items(), 1):
        drawn = torch.ones(shape) if len(shape) == 1 else 0.02 * torch.randn(shape, generator=generator)
        shard[name] = drawn.bfloat16()
        if number == len(shapes) or sum(tensor.nbytes for tensor in shard.values()) > SHARD:
            file = f"model-{number:05d}.safetensors"
            save_file(shard, folder / file)
            places |= dict.fromkeys(shard, file)
            shard = {}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def compressed(source: Path, runs: Path, peaks: list[float]) -> float:
    """Seconds of the command in a process of its own, whose peak memory is noted."""
    shutil.rmtree(runs, ignore_errors=True)
    command = [sys.executable, "-m", "openafm", "compress", str(source), "--uncalibrated", "--runs-dir", str(runs)]
    seconds = timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
    peaks.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
    return seconds


if __name__ == "__main__":
    main()
