import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.adapters.store import Adapter, AdapterStore

STATE = {"layer.lora_a": torch.arange(6.0).view(2, 3), "layer.lora_b": torch.ones(4, 2)}


def test_an_adapter_comes_back(tmp_path):
    store = AdapterStore(tmp_path)
    assert store.names() == []
    store.save("mail-1.0", Adapter(STATE, 2, 4.0, "recovery", "40 mails", {"rouge": 0.5}))
    store.save("a", Adapter(STATE, 2, 4.0))
    assert store.names() == ["a", "mail-1.0"]
    loaded = store.load("mail-1.0")
    assert (loaded.rank, loaded.alpha, loaded.parent, loaded.parameters) == (2, 4.0, "recovery", 14)
    assert loaded.metrics == {"rouge": 0.5}
    assert all(torch.equal(loaded.state[key], STATE[key].half()) for key in STATE)
    assert store.card("a")["bytes"] == (tmp_path / "a" / "adapter.safetensors").stat().st_size


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=12).filter(lambda name: not name.isalnum() or not name.isascii()) | st.just("x" * 65))
def test_only_plain_names_become_paths(tmp_path_factory, name):
    store = AdapterStore(tmp_path_factory.mktemp("store") / "in")
    allowed = name and len(name) <= 64 and name[0].isascii() and name[0].isalnum()
    allowed = allowed and all(c.isascii() and (c.isalnum() or c in "._-") for c in name)
    if not allowed:
        with pytest.raises(ValueError, match="adapter name"):
            store.save(name, Adapter(STATE, 2, 4.0))
        assert not store.folder.exists()


@pytest.mark.parametrize("name", ["../evil", "a/b", "..", ".", "/etc", "a\n", "-x", ""])
def test_no_way_out_of_the_store(tmp_path, name):
    with pytest.raises(ValueError, match="adapter name"):
        AdapterStore(tmp_path).load(name)


def test_damage_and_absence_are_named(tmp_path):
    store = AdapterStore(tmp_path)
    with pytest.raises(ValueError, match="it holds none"):
        store.load("missing")
    store.save("a", Adapter(STATE, 2, 4.0))
    weights = tmp_path / "a" / "adapter.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match=r"adapter\.safetensors is damaged"):
        store.load("a")
    card = tmp_path / "a" / "card.json"
    card.write_text(json.dumps({"name": "a"}))
    with pytest.raises(ValueError, match=r"card\.json is damaged"):
        store.load("a")
