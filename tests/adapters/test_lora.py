import peft
import pytest
import torch
from torch import nn

from openafm.adapters.lora import (
    adapted,
    adapter_state,
    attach,
    detach,
    load_adapter,
    merge,
    truncated,
    use_rank,
)
from openafm.model import ModelConfig, Transformer
from openafm.model.muparam import initialise, trainable_groups

SHAPE = ModelConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=48, rope_base=500)


@pytest.fixture
def model():
    return initialise(Transformer(SHAPE), 0).eval()


def randomise(model):
    torch.manual_seed(1)
    for layer in adapted(model).values():
        nn.init.normal_(layer.lora_a, std=0.3)
        nn.init.normal_(layer.lora_b, std=0.3)


TOKENS = torch.randint(0, 64, (2, 11), generator=torch.Generator().manual_seed(0))


def test_a_fresh_adapter_changes_nothing_and_only_it_is_trained(model):
    before, names = model(TOKENS), set(model.state_dict())
    attach(model, 4, 8.0)
    assert torch.equal(model(TOKENS), before)
    assert names < set(model.state_dict())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{layer}.{half}" for layer in model.linears() for half in ("lora_a", "lora_b")}
    assert len(trainable_groups(model)[0]["params"]) == 2 * len(model.linears())


def test_equals_the_formula_w_plus_scaled_ba(model):
    reference = initialise(Transformer(SHAPE), 0).eval()
    attach(model, 4, 6.0)
    randomise(model)
    for name, layer in adapted(model).items():
        reference.get_submodule(name).weight.data += 6.0 / 4 * layer.lora_b.data @ layer.lora_a.data
    torch.testing.assert_close(model(TOKENS), reference(TOKENS), atol=2e-5, rtol=1e-4)
    merge(model)
    assert not adapted(model)
    torch.testing.assert_close(model(TOKENS), reference(TOKENS))


def test_equals_peft(model):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 24, bias=False))
    peers = peft.get_peft_model(net, peft.LoraConfig(r=4, lora_alpha=6, target_modules=["0"], init_lora_weights=False))
    attach(model, 4, 6.0, targets=["model.layers.0.mlp.gate_proj"])
    layer = adapted(model)["model.layers.0.mlp.gate_proj"]
    theirs = peers.base_model.model[0]
    a, b = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
    layer.weight.data[:24], layer.lora_a.data = theirs.base_layer.weight.data, a.data
    layer.lora_b.data[:24] = b.data
    x = torch.randn(3, 32)
    torch.testing.assert_close(layer(x)[:, :24], peers(x))


def test_state_comes_back_and_detach_leaves_the_base(model):
    before = model(TOKENS)
    attach(model, 4, 8.0)
    randomise(model)
    adapted_logits, state = model(TOKENS), adapter_state(model, torch.float32)
    detach(model)
    assert torch.equal(model(TOKENS), before) and not adapted(model)
    load_adapter(model, state, 8.0)
    assert torch.equal(model(TOKENS), adapted_logits)
    assert {tensor.dtype for tensor in adapter_state(model).values()} == {torch.float16}


def test_an_adapter_of_another_model_is_refused(model):
    with pytest.raises(ValueError, match="no layer"):
        load_adapter(model, {"model.nowhere.lora_a": torch.zeros(1, 2), "model.nowhere.lora_b": torch.zeros(2, 1)}, 1.0)
    name = "model.layers.0.mlp.up_proj"
    with pytest.raises(ValueError, match="another model"):
        load_adapter(model, {f"{name}.lora_a": torch.zeros(4, 99), f"{name}.lora_b": torch.zeros(48, 4)}, 1.0)


def test_a_truncation_is_an_adapter_of_that_rank(model):
    attach(model, 6, 9.0)
    randomise(model)
    state = adapter_state(model, torch.float32)
    use_rank(model, 2)
    nested = model(TOKENS)
    nested.sum().backward()
    for layer in adapted(model).values():  # what is left out learns nothing
        assert not layer.lora_a.grad[2:].any() and not layer.lora_b.grad[:, 2:].any() and layer.lora_a.grad[:2].any()
    cut, alpha = truncated(state, 9.0, 2)
    assert alpha == 3.0
    load_adapter(model, cut, alpha)
    torch.testing.assert_close(model(TOKENS), nested)
    whole, alpha = truncated(state, 9.0, 6)
    assert alpha == 9.0 and all(torch.equal(whole[key], state[key]) for key in state)
    with pytest.raises(ValueError, match="rank 7 cannot be cut"):
        truncated(state, 9.0, 7)
