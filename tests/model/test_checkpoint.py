import json

import pytest
import torch

from openafm.model import checkpoint
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


def test_a_shape_of_more_layers_is_told_before_they_are_made(tiny_model, tmp_path, monkeypatch):
    save_model(tiny_model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"n_layers": 1_000}))
    monkeypatch.setattr(checkpoint, "Transformer", lambda *shape: pytest.fail("a thousand layers were made"))
    with pytest.raises(ValueError, match=r"it has no model\.layers\.999\."):
        load_model(tmp_path)
