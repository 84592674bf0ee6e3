import pytest
import torch

from openafm.model import ModelConfig, Transformer
from openafm.model.muparam import initialise, parameter_groups


def shape(width: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=256, d_model=width, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=width // 4, d_ff=3 * width
    )


@pytest.mark.parametrize("width", [64, 256])
def test_initial_deviations(width):
    model = initialise(Transformer(shape(width)), 0)
    for linear in model.linears().values():
        assert float(linear.weight.detach().std()) == pytest.approx(linear.in_features**-0.5, rel=0.05)
    assert float(model.model.embed_tokens.weight.detach().std()) == pytest.approx(width**-0.5, rel=0.05)


def test_only_projections_are_scaled():
    model = Transformer(shape(256))
    scaled, whole = parameter_groups(model, base_width=64)
    assert scaled["mult"] == 0.25 and whole["mult"] == 1.0
    assert {id(p) for p in scaled["params"]} == {id(linear.weight) for linear in model.linears().values()}
    assert len(scaled["params"]) + len(whole["params"]) == len(list(model.parameters()))
    assert parameter_groups(Transformer(shape(64)), base_width=256)[0]["mult"] == 4.0  # no cap at 1


def test_equal_seeds_equal_weights():
    first, second = (initialise(Transformer(shape(64)), 5).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = initialise(Transformer(shape(64)), 6).state_dict()
    assert not any(torch.equal(first[name], other[name]) for name in first if "norm" not in name)
