"""GGUF files against llama.cpp itself (llama-cpp-python), which the tests skip where it is not installed."""

import json
from contextlib import closing

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from openafm.engine import TorchEngine
from openafm.model import ModelConfig, Transformer
from openafm.model.checkpoint import load_model, save_model
from openafm.model.gguf import import_gguf
from openafm.serving.exporting import export
from openafm.serving.gguf_export import LLAMA3, pre_tokenizer
from openafm.tokenizer import load
from openafm.tokenizer.train import train_sentencepiece, write_tokenizer

TEXTS = [
    "Hello  world, isn't it 1987 or 12,345.67?",
    "def f(x):\n    if x:\n\t\treturn x ** 2\n\n\n",
    "Größe: 12 €, 日本語 ☃ 🙂 e\u0301",
    "       seven spaces, then a tab\t\tand a line\r\nend   ",
    "<0x41> <|end <bo s> 0",
]
CORPUS = ["the year of the return of the function, in 1987: x = x + 1\n    return the words\n"] * 4


def byte_level(folder):
    """A tokenizer with SmolLM2's choices."""
    model = Tokenizer(models.BPE())
    parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    model.pre_tokenizer, model.decoder = pre_tokenizers.Sequence(parts), decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<|endoftext|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(CORPUS, trainer)
    model.save(str(folder / "tokenizer.json"))
    config = {"kind": "tokenizers", "chat_template": "{{ messages[0]['content'] }}", "bos": special[0]}
    config |= {"eos": special[0], "end_of_turn": special[1], "pad": special[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def model(request, tmp_path_factory):
    """QK-norm and SentencePiece as trained here; or neither, as imported. Heads are narrower than d_model / heads."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "qwen3":
        write_tokenizer(folder, train_sentencepiece(CORPUS, 320))
    else:
        byte_level(folder)
    shape = ModelConfig(
        vocab_size=load(folder).vocab_size, d_model=96, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=32, d_ff=128,
        rope_base=500.0, qk_norm=request.param == "qwen3", max_length=256,
    )  # fmt: skip
    torch.manual_seed(0)
    made = Transformer(shape).requires_grad_(False)
    for name, tensor in made.state_dict().items():
        tensor.copy_(torch.rand_like(tensor) + 0.5 if "norm" in name else torch.randn_like(tensor) * 0.15)
    save_model(made, folder, None)
    return folder


def opened(path):
    """The file in llama.cpp, keys and values in float32."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (docs/format.md, Exports)")
    options = {"n_ctx": 256, "n_threads": 1, "logits_all": True, "verbose": False}
    return closing(llama_cpp.Llama(str(path), type_k=0, type_v=0, **options))


def both_logits(model, path):
    tokens = [load(model).bos_id, *load(model).encode("".join(TEXTS))][:200]
    with torch.no_grad():
        ours = load_model(model)(torch.tensor([tokens]))[0].numpy()
    with opened(path) as llama:
        llama.eval(tokens)
        return torch.tensor(tokens[1:]), ours, np.array(llama.scores[: len(tokens)])


def test_llama_cpp_computes_the_same_logits(model, tmp_path):
    export(model, tmp_path / "m.gguf", "gguf", kind="f32")
    _, ours, theirs = both_logits(model, tmp_path / "m.gguf")
    np.testing.assert_allclose(theirs, ours, atol=2e-3, rtol=1e-3)
    assert ours.std() > 0.5


@pytest.mark.parametrize(("kind", "nats"), [("f16", 0.005), ("bf16", 0.02), ("q8_0", 0.02), ("q4_0", 0.2)])
def test_stored_types_cost_what_their_rounding_does(model, tmp_path, kind, nats):
    export(model, tmp_path / "m.gguf", "gguf", kind=kind)
    targets, *logits = both_logits(model, tmp_path / "m.gguf")
    ours, theirs = (torch.nn.functional.cross_entropy(torch.tensor(found[:-1]), targets) for found in logits)
    assert abs(ours - theirs) < nats


def test_llama_cpp_makes_the_same_tokens(model, tmp_path):
    export(model, tmp_path / "m.gguf", "gguf")
    tokenizer = load(model)
    with opened(tmp_path / "m.gguf") as llama:
        for text in TEXTS:
            assert llama.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text), text
        assert llama.token_eos() == tokenizer.eos_id
        assert (
            llama.metadata["tokenizer.chat_template"]
            == json.loads((model / "tokenizer_config.json").read_text())["chat_template"]
        )


def test_what_was_exported_is_imported_again(model, tmp_path):
    if load_model(model).config.qk_norm:
        pytest.skip("import reads Llama only")
    export(model, tmp_path / "m.gguf", "gguf", kind="f32")
    import_gguf(tmp_path / "m.gguf", tmp_path / "back")
    back, first = load_model(tmp_path / "back"), load_model(model)
    assert back.config == first.config
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], tensor.bfloat16().float(), atol=0, rtol=0)
    assert [load(tmp_path / "back").encode(text) for text in TEXTS] == [load(model).encode(text) for text in TEXTS]


def test_a_package_with_its_adapter_keeps_every_table_entry(run, tmp_path):
    export(run / "recovery", tmp_path / "bare.gguf", "gguf")
    package = TorchEngine.load(run / "recovery").use(None).state_dict()
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "bare.gguf").tensors}
    for part, name in (("ffn_up", "mlp.up_proj"), ("attn_q", "self_attn.q_proj"), ("attn_q_norm", "self_attn.q_norm")):
        found = stored[f"blk.0.{part}.weight"].data
        np.testing.assert_array_equal(found.astype(np.float32), package[f"model.layers.0.{name}.weight"].numpy())
    export(run / "recovery", tmp_path / "merged.gguf", "gguf", adapter="summary", kind="f32")
    merged = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "merged.gguf").tensors}
    adapter = TorchEngine.load(run / "recovery")._adapters["summary"]
    layer = "model.layers.0.mlp.up_proj"
    up, down = (adapter.state[f"{layer}.{half}"] for half in ("lora_b", "lora_a"))
    low_rank = adapter.alpha / adapter.rank * up.float() @ down.float()
    expected = package[f"{layer}.weight"] + low_rank
    np.testing.assert_allclose(merged["blk.0.ffn_up.weight"], expected.numpy(), atol=1e-5)


def test_known_pre_tokenizers_and_others(tmp_path):
    def described(*parts):
        return {"model": {"type": "BPE"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(parts)}}

    llama3 = {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False}
    plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    assert pre_tokenizer(described(llama3, plain), tmp_path) == "llama-bpe"
    assert pre_tokenizer(described({**plain, "use_regex": True}), tmp_path) == "gpt-2"
    with pytest.raises(ValueError, match="no name for this pre-tokenizer"):
        pre_tokenizer(described({"type": "Whitespace"}, plain), tmp_path)
    with pytest.raises(ValueError, match="only byte-level BPE"):
        pre_tokenizer({"model": {"type": "Unigram"}}, tmp_path)


def test_what_cannot_be_is_said(model, run, tmp_path):
    with pytest.raises(ValueError, match="ends in \\.gguf"):
        export(model, tmp_path / "m", "gguf")
    with pytest.raises(ValueError, match="takes f32, f16"):
        export(model, tmp_path / "m.gguf", "gguf", kind="q3")
    with pytest.raises(ValueError, match="choose hf, peft"):
        export(model, tmp_path / "m", "onnx")
    with pytest.raises(ValueError, match="48 columns, q8_0 needs a multiple of 32"):
        export(run / "teacher", tmp_path / "m.gguf", "gguf", kind="q8_0")
    assert not (tmp_path / "m.gguf").exists()
