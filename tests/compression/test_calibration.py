import numpy as np
import pytest
import torch
from torch.nn import functional as F

from openafm.compression.calibration import Windows, compare, grams_by_block, nats, read_windows, replaced
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


def test_gram_matrices_equal_a_direct_look(world):
    model = load_model(world / "model").requires_grad_(False)
    windows = read_windows(world / "shards", "train", 16, 200)
    found = {name: gram for grams in grams_by_block(model, windows, Hardware()) for name, gram in grams.items()}
    assert set(found) == set(model.linears())
    for name, gram in found.items():
        x = inputs_of(model, name, windows.tokens)
        torch.testing.assert_close(gram.double(), x.T @ x / len(x), rtol=1e-3, atol=1e-6)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_block_reads_what_the_changed_blocks_before_it_give(world):
    model = load_model(world / "model").requires_grad_(False)
    windows = read_windows(world / "shards", "train", 16, 200)
    name = "model.layers.1.mlp.gate_proj"
    for number, grams in enumerate(grams_by_block(model, windows, Hardware())):
        if number == 0:
            model.model.layers[0].mlp.down_proj.weight.data *= 0.3
        else:
            x = inputs_of(model, name, windows.tokens)  # of the changed model
            torch.testing.assert_close(grams[name].double(), x.T @ x / len(x), rtol=1e-3, atol=1e-6)


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


def test_windows_come_from_every_source_with_its_bytes(world):
    windows = read_windows(world / "shards", "heldout", 16, 320)
    assert windows.tokens.shape == (20, 17) and windows.predicted == 320
    assert 1 < windows.bytes / windows.predicted < 6
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
