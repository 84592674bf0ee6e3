import pytest
import torch

from openafm.model.checkpoint import load_model, save_model


def test_round_trip(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.config == tiny_model.config
    tokens = torch.arange(10).unsqueeze(0)
    assert torch.equal(again(tokens), tiny_model(tokens))
    save_model(again, tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "model/model.safetensors").read_bytes()


def test_damage_is_named(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="not a model folder"):
        load_model(tmp_path)
    save_model(tiny_model, tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_model(tmp_path)
