"""Adapters of PEFT's own making come in and go out without loss."""

import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from openafm.adapters.lora import load_adapter
from openafm.adapters.peft import CONFIG, WEIGHTS, read_peft, write_peft
from openafm.model import Transformer
from openafm.model.huggingface import model_config
from openafm.recipe.fitting import import_to

TOKENS = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(0))
SHAPE = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "tie_word_embeddings": True, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture
def base():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).eval()


def trained(base, folder, dtype=torch.float32, **options):
    """An adapter with random weights as PEFT saves it; its logits."""
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], **options)
    model = peft.get_peft_model(base, config).eval()
    for name, weight in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight, std=0.2)
            weight.data = weight.data.to(dtype).to(weight.dtype)
    model.save_pretrained(folder)
    with torch.no_grad():
        return model(TOKENS).logits


def test_a_round_trip_keeps_every_bit(base, tmp_path):
    logits = trained(base, tmp_path / "theirs")
    adapter = read_peft(tmp_path / "theirs")
    assert (adapter.rank, adapter.alpha) == (4, 6.0)
    write_peft(adapter, tmp_path / "ours", ["down_proj", "q_proj"])
    before, after = load_file(tmp_path / "theirs" / WEIGHTS), load_file(tmp_path / "ours" / WEIGHTS)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    again = peft.PeftModel.from_pretrained(transformers.LlamaForCausalLM(base.config), tmp_path / "ours").eval()
    plain = {key: value for key, value in base.state_dict().items() if "lora_" not in key}
    again.base_model.model.load_state_dict(plain, strict=False)
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, logits)


@pytest.mark.parametrize("rslora", [False, True])
def test_our_model_computes_what_peft_computes(base, tmp_path, rslora):
    model = Transformer(model_config(base.config.to_dict(), "base"))
    weights = base.state_dict()
    model.load_state_dict({name: weights[name].clone() for name in model.state_dict()})
    logits = trained(base, tmp_path / "theirs", use_rslora=rslora)
    adapter = read_peft(tmp_path / "theirs")
    load_adapter(model, adapter.state, adapter.alpha)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(TOKENS), logits, atol=2e-5, rtol=1e-4)


def test_import_puts_it_where_serve_looks_and_says_what_was_rounded(base, tmp_path):
    trained(base, tmp_path / "exact", torch.float16)
    folder, told = import_to(str(tmp_path / "exact"), tmp_path / "adapters" / "mine")
    card = json.loads((folder / "card.json").read_text())
    assert "float16 holds it exactly" in told and (card["name"], card["rank"]) == ("mine", 4)
    stored, theirs = load_file(folder / "adapter.safetensors"), read_peft(tmp_path / "exact").state
    assert all(torch.equal(stored[key].float(), theirs[key]) for key in theirs) and stored.keys() == theirs.keys()
    trained(base, tmp_path / "finer")
    assert "rounded to float16, by at most" in import_to(str(tmp_path / "finer"), tmp_path / "adapters" / "finer")[1]
    with pytest.raises(ValueError, match="exists"):
        import_to(str(tmp_path / "finer"), folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora has no counterpart"),
        ({"bias": "all"}, "bias=all has no counterpart"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"peft_type": "IA3"}, "IA3 has no counterpart"),
        ({"r": None}, "no PEFT configuration"),
    ],
)
def test_what_cannot_be_taken_over_is_named(base, tmp_path, change, message):
    trained(base, tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text()) | change
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        read_peft(tmp_path)


def test_damaged_weights_are_named(base, tmp_path):
    trained(base, tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="missing or damaged"):
        read_peft(tmp_path)
