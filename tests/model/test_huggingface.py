import json
import struct

import pytest
import tokenizers
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from openafm.model.checkpoint import load_model
from openafm.model.config import load_config
from openafm.model.huggingface import import_folder, model_config
from openafm.model.importing import ImportConfig, import_any, import_model
from openafm.stage import Context
from openafm.tokenizer import load

SHAPE = {
    "vocab_size": 272, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
}  # fmt: skip
CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}


def write_hf_tokenizer(folder, **settings):
    """A byte-level BPE of 256 bytes and two special tokens, as Hugging Face writes it."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens(["<|end|>", "<|pad|>"])
    model.save(str(folder / "tokenizer.json"))
    pad = {"__type": "AddedToken", "content": "<|pad|>", "special": True}
    config = {"eos_token": "<|end|>", "pad_token": pad, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def checkpoint(folder, kind="llama", shards=None, **changes):
    """A random checkpoint as transformers saves it; the transformers model."""
    torch.manual_seed(3)
    config_class, model_class = CLASSES[kind]
    model = model_class(config_class(**SHAPE | changes)).eval()
    for parameter in model.parameters():  # away from the small initial values, norms from 1
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder, **({"max_shard_size": shards} if shards else {}))
    write_hf_tokenizer(folder)
    return model


@pytest.mark.parametrize("shards", [None, "20KB"])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 777.0}, "num_key_value_heads": 4}),
        ("qwen3", {"head_dim": 16}),
    ],
)
def test_logits_are_those_of_transformers(tmp_path, kind, changes, shards):
    theirs = checkpoint(tmp_path / "hf", kind, shards, **changes)
    assert (tmp_path / "hf" / "model.safetensors.index.json").exists() == (shards is not None)
    import_folder(tmp_path / "hf", tmp_path / "ours")
    ours = load_model(tmp_path / "ours")
    assert ours.config.vocab_size == 258 and ours.config.qk_norm == (kind == "qwen3")  # the padding is cut off
    tokens = torch.randint(0, 258, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits[..., :258], atol=2e-5, rtol=1e-5)


def test_old_configs_say_rope_theta(tmp_path):
    checkpoint(tmp_path)
    old = json.loads((tmp_path / "config.json").read_text())
    old.pop("rope_parameters")
    assert model_config(old | {"rope_theta": 5e5}, "c").rope_base == 5e5
    assert model_config(old, "c").rope_base == 10_000.0
    with pytest.raises(ValueError, match=r"rope scaling .*llama3"):
        model_config(old | {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "c")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"attention_bias": True}, "biases"),
        ({"mlp_bias": True}, "biases"),
        ({"use_sliding_window": True}, "sliding windows"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding windows"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial rotary"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(tmp_path, change, message):
    checkpoint(tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    settings_ = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in settings_.items() if value is not None}))
    with pytest.raises(ValueError, match=message):
        import_folder(tmp_path / "hf", tmp_path / "ours")


def test_untied_heads_are_refused_and_equal_ones_taken(tmp_path):
    checkpoint(tmp_path / "hf", tie_word_embeddings=False)
    with pytest.raises(ValueError, match="tied embeddings"):
        import_folder(tmp_path / "hf", tmp_path / "ours")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "hf" / "model.safetensors")
    import_folder(tmp_path / "hf", tmp_path / "ours")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(ValueError, match="not tied"):
        import_folder(tmp_path / "hf", tmp_path / "ours")


def test_biases_in_the_weights_are_refused(tmp_path):
    checkpoint(tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    save_file(weights | {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(ValueError, match=r"q_proj\.bias"):
        import_any(str(tmp_path / "hf"), tmp_path / "ours")


def test_a_pickle_is_never_read(tmp_path):
    checkpoint(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "hf" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="only safetensors are read"):
        import_folder(tmp_path / "hf", tmp_path / "ours")
    index = {"weight_map": {"a": "../hf/pytorch_model.bin"}}
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="no name of a file beside it"):
        import_folder(tmp_path / "hf", tmp_path / "ours")


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 2**40))
def test_hostile_safetensors_are_a_plain_error(tmp_path_factory, junk, length):
    folder = tmp_path_factory.mktemp("hostile")
    checkpoint(folder)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + junk)
    with pytest.raises(ValueError, match=r"model\.safetensors|embed_tokens"):
        import_folder(folder, folder / "ours")


def test_the_tokenizer_comes_along(tmp_path):
    checkpoint(tmp_path / "hf")
    (tmp_path / "hf" / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}")
    import_folder(tmp_path / "hf", tmp_path / "ours")
    tokenizer = load(tmp_path / "ours")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.encode("A café\n") == theirs.encode("A café\n") and tokenizer.pad_id == theirs.pad_token_id
    assert tokenizer.render_chat([{"role": "user", "content": "hi"}]) == [*tokenizer.encode("hi"), tokenizer.eos_id]
    (tmp_path / "hf" / "chat_template.jinja").unlink()
    import_folder(tmp_path / "hf", tmp_path / "plain")
    plain = load(tmp_path / "plain")
    said = plain.render_chat([{"role": "user", "content": "hi"}])
    assert said == [*plain.encode("user: hi"), plain.eos_id, *plain.encode("\nassistant: ")]


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_what_is_missing_or_broken_is_named(tmp_path, file):
    checkpoint(tmp_path / "hf")
    (tmp_path / "hf" / file).write_text("{")
    with pytest.raises(ValueError, match=file.replace(".", r"\.")):
        import_folder(tmp_path / "hf", tmp_path / "ours")
    (tmp_path / "hf" / file).unlink()
    with pytest.raises(ValueError, match=file.replace(".", r"\.")):
        import_folder(tmp_path / "hf", tmp_path / "ours")


def test_the_stage_takes_a_setting_before_its_input(tmp_path):
    checkpoint(tmp_path / "hf")
    (tmp_path / "a").mkdir()
    metrics = import_model(ImportConfig(), Context(tmp_path / "a", tmp_path), model=tmp_path / "hf")
    assert metrics["name"] == "hf" and metrics["vocab_size"] == 258
    config = ImportConfig(model=str(tmp_path / "a"))
    assert {path.name for path in config.files()} >= {"config.json", "model.safetensors"}
    (tmp_path / "b").mkdir()
    import_model(config, Context(tmp_path / "b", tmp_path), model=tmp_path / "nowhere")
    assert load_config(tmp_path / "b") == load_config(tmp_path / "a")
    assert (tmp_path / "b/model.safetensors").read_bytes() == (tmp_path / "a/model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="no model is named"):
        import_model(ImportConfig(), Context(tmp_path / "b", tmp_path))


def test_a_hub_name_that_cannot_be_had_says_what_to_do(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = {}

    def offline(name, **options):
        asked.update(options, name=name)
        raise LocalEntryNotFoundError("cannot connect")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match=r"owner/name@v1 cannot be had .*cannot connect.*give the folder"):
        import_any("owner/name@v1", tmp_path)
    assert asked["name"] == "owner/name" and asked["revision"] == "v1"
    assert not any("bin" in pattern or pattern == "*" for pattern in asked["allow_patterns"])
    with pytest.raises(ValueError, match=r"no folder, no \.gguf file"):
        import_any("../elsewhere/x", tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"num_attention_heads": 0}, {"model_type": ["llama"]}, {"layer_types": 3}, {"rope_scaling": 7}]
)
def test_a_value_of_the_wrong_kind_names_the_file(wrong):
    whole = {
        "model_type": "llama", "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 48, "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
    }  # fmt: skip
    assert model_config(whole, "config.json").head_dim == 16
    with pytest.raises(ValueError, match=r"config\.json"):
        model_config(whole | wrong, "config.json")
