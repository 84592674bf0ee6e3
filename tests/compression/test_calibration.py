import json
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from openafm.compression.calibration import Windows, compare, nats, read_windows, readings, replaced
from openafm.model.checkpoint import load_model
from openafm.stage import Hardware


def inputs_of(model, name, tokens):
    """What the projection `name` reads when the whole model runs, `(tokens, in)`."""
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    for row in tokens:
        model(row[None, :-1])
    handle.remove()
    return torch.cat([x.reshape(-1, x.shape[-1]) for x in seen]).double()


def test_readings_equal_a_direct_look(world):
    base, model = (load_model(world / "model").requires_grad_(False) for _ in range(2))
    windows = read_windows(world / "shards", "train", 16, 200)
    for layer in model.linears().values():
        layer.weight.data *= 0.9
    names = []
    for reading in readings(base, model, windows, Hardware()):
        names += reading.names
        for name in reading.names:
            x, changed = (inputs_of(m, name, windows.tokens) for m in (base, model))
            torch.testing.assert_close(reading.gram.double(), changed.T @ changed / len(x), rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(
                reading.change.double(), (x - changed).T @ changed / len(x), rtol=1e-3, atol=1e-5
            )
    assert set(names) == set(model.linears()) and len(names) == len(set(names))
    assert not any(module._forward_pre_hooks for m in (base, model) for module in m.modules())


def test_what_the_residual_stream_lacks(world):
    base, model = (load_model(world / "model").requires_grad_(False) for _ in range(2))
    model.model.layers[0].mlp.up_proj.weight.data *= 0.5
    windows = read_windows(world / "shards", "train", 16, 200)
    found = {reading.names[0]: reading.lack for reading in readings(base, model, windows, Hardware())}
    norm, name = "model.layers.1.post_attention_layernorm", "model.layers.1.mlp.down_proj"
    lack = inputs_of(base, norm, windows.tokens) - inputs_of(model, norm, windows.tokens)
    x = inputs_of(model, name, windows.tokens)
    torch.testing.assert_close(found[name].double(), lack.T @ x / len(x), rtol=1e-3, atol=1e-5)
    assert {name for name, lack in found.items() if lack is None} == {
        f"model.layers.{i}.{part}" for i in range(len(model.blocks)) for part in ("self_attn.q_proj", "mlp.gate_proj")
    }


def test_a_projection_reads_what_the_changed_ones_before_it_give(world):
    base, model = (load_model(world / "model").requires_grad_(False) for _ in range(2))
    windows = read_windows(world / "shards", "train", 16, 200)
    for reading in readings(base, model, windows, Hardware()):
        for name in reading.names:
            x = inputs_of(model, name, windows.tokens)
            torch.testing.assert_close(reading.gram.double(), x.T @ x / len(x), rtol=1e-3, atol=1e-5)
            model.get_submodule(name).weight.data *= 0.7


def test_one_model_on_both_sides_is_read_as_two_equal_ones(world):
    base, model = (load_model(world / "model").requires_grad_(False) for _ in range(2))
    windows = read_windows(world / "shards", "train", 16, 200)
    pairs = zip(readings(base, base, windows, Hardware()), readings(base, model, windows, Hardware()), strict=True)
    for once, twice in pairs:
        assert once.names == twice.names and torch.equal(once.gram, twice.gram)
        assert not once.change.any() and not twice.change.any()


def test_losses_and_divergence_by_definition(world):
    base, other = load_model(world / "model"), load_model(world / "model")
    other.model.layers[0].mlp.up_proj.weight.data *= 0.5
    windows = read_windows(world / "shards", "heldout", 16, 100)
    found = compare(other, base, windows)
    logits = other(windows.tokens[:, :-1]).transpose(1, 2)
    expected = F.cross_entropy(logits, windows.tokens[:, 1:], reduction="none").mean(1)
    np.testing.assert_allclose(found.model, expected.detach(), rtol=1e-5)
    np.testing.assert_allclose(nats(other, windows), found.model, rtol=1e-5)
    p, q = (F.softmax(m(windows.tokens[:, :-1]), -1) for m in (base, other))
    np.testing.assert_allclose(found.kl, (p * (p / q).log()).sum(-1).mean(1).tolist(), rtol=1e-3, atol=1e-6)
    assert compare(base, base, windows).kl == pytest.approx([0.0] * len(found.kl), abs=1e-6)


def test_windows_come_from_every_source_with_its_bytes(world, tmp_path):
    shutil.copytree(world / "shards", tmp_path / "shards")
    index = json.loads((tmp_path / "shards/index.json").read_text())
    for name, rate in (("code", 2), ("web", 5)):
        index["splits"]["heldout"][name]["bytes"] = rate * index["splits"]["heldout"][name]["tokens"]
    (tmp_path / "shards/index.json").write_text(json.dumps(index))
    code = tmp_path / "shards/heldout/code.bin"  # else the same text as web
    np.zeros(code.stat().st_size // 2, "<u2").tofile(code)
    windows = read_windows(tmp_path / "shards", "heldout", 16, 320)
    assert windows.tokens.shape == (20, 17) and windows.predicted == 320
    assert windows.tokens.any(1).tolist() == [False] * 10 + [True] * 10
    assert windows.bytes == pytest.approx(160 * 2 + 160 * 5)
    with pytest.raises(ValueError, match="lower `length`"):
        read_windows(world / "shards", "heldout", 10**6, 320)
    assert isinstance(windows, Windows)


def test_a_replaced_weight_comes_back(world):
    model = load_model(world / "model")
    name = "model.layers.0.self_attn.q_proj"
    kept = model.get_submodule(name).weight.clone()
    with pytest.raises(RuntimeError), replaced(model, name, torch.zeros_like(kept)):
        assert not model.get_submodule(name).weight.any()
        raise RuntimeError
    assert torch.equal(model.get_submodule(name).weight, kept)
