import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from openafm.compression.embedding import quantize_embedding
from openafm.compression.package import write_package
from openafm.compression.palettize import palettize
from openafm.compression.streaming import create_tensors, palettize_checkpoint
from openafm.model import ModelConfig, Transformer
from openafm.model.checkpoint import save_model

SHAPE = ModelConfig(
    vocab_size=300, d_model=48, n_layers=2, n_heads=3, n_kv_heads=1, head_dim=16, d_ff=88, rope_base=500.0,
    max_length=64,
)  # fmt: skip


def plain(names, _what):
    return names


@pytest.fixture
def folder(tmp_path):
    """A model folder in bfloat16, in three shards."""
    torch.manual_seed(0)
    save_model(Transformer(SHAPE).to(torch.bfloat16), tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "model.safetensors").unlink()
    places = {}
    for part in range(3):
        name = f"model-{part}.safetensors"
        mine = dict(list(weights.items())[part::3])
        save_file(mine, tmp_path / "model" / name)
        places |= dict.fromkeys(mine, name)
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return tmp_path / "model", weights


@pytest.mark.parametrize("threads", [1, 3])
def test_streaming_writes_the_bytes_of_the_package_made_in_memory(folder, tmp_path, threads, monkeypatch):
    source, weights = folder
    monkeypatch.setattr("openafm.compression.streaming.ROWS", 77)
    package, lost = palettize_checkpoint(source, tmp_path / "streamed", plain, 4, 16, threads)
    values = {name: tensor.float().numpy() for name, tensor in weights.items()}
    projections = {name.removesuffix(".weight"): palettize(w, 4) for name, w in values.items() if "_proj" in name}
    norms = {name: w for name, w in values.items() if w.ndim == 1}
    embedding = quantize_embedding(values["model.embed_tokens.weight"])
    write_package(tmp_path / "whole", SHAPE, projections, embedding, norms, source)
    for name in ("weights.safetensors", "header.json"):
        assert (tmp_path / "streamed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    made = {name: p.dequantize() for name, p in projections.items()}
    squares = sum(np.square(values[f"{name}.weight"], dtype=np.float64).sum() for name in made)
    apart = sum(np.square(values[f"{n}.weight"].astype(np.float64) - q).sum() for n, q in made.items())
    assert lost == pytest.approx(apart / squares, rel=1e-5)
    assert package.model()(torch.tensor([[1, 2, 3]])).isfinite().all()


def test_a_tensor_that_does_not_unpack_to_what_was_packed_is_named(folder, tmp_path, monkeypatch):
    def damaged(indices, bits):
        from openafm.engine.packed import pack

        return pack(indices, bits) ^ np.uint8(indices.shape[1] == SHAPE.d_ff)

    monkeypatch.setattr("openafm.compression.streaming.pack", damaged)
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.down_proj does not unpack to what was packed"):
        palettize_checkpoint(folder[0], tmp_path / "out", plain)


def test_the_file_is_laid_out_as_the_library_does(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "b.norm": rng.normal(size=7).astype(np.float32),
        "a.tables": rng.normal(size=(3, 4)).astype(np.float16),
        "c.int8": rng.integers(-9, 9, (5, 3)).astype(np.int8),
        "a.indices": rng.integers(0, 255, (5, 3)).astype(np.uint8),
        "a.norm": rng.normal(size=2).astype(np.float32),
    }
    kinds = {"float32": "F32", "float16": "F16", "int8": "I8", "uint8": "U8"}
    tensors = {name: (kinds[array.dtype.name], array.shape) for name, array in arrays.items()}
    places = create_tensors(tmp_path / "ours", tensors)
    with (tmp_path / "ours").open("r+b") as file:
        for name, array in arrays.items():
            file.seek(places[name])
            file.write(array.tobytes())
    save_arrays(arrays, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    np.testing.assert_array_equal(load_arrays(tmp_path / "ours")["c.int8"], arrays["c.int8"])
