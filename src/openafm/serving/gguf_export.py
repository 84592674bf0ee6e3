"""A model as one GGUF file for llama.cpp (`openafm export MODEL --to gguf`): weights, tokenizer, chat template.

Models with QK-norm become the architecture `qwen3`, others `llama`. Matrices are stored in the type asked for, norms in
float32; the 4- and 8-bit types are rounded anew by the gguf package's own quantizers. The format has no tables shared
by rows, so a package is dequantized: float16 holds every table entry exactly.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import sentencepiece
import tokenizers
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from numpy.typing import NDArray

from openafm.model import ModelConfig
from openafm.model.gguf import NAMES, permute
from openafm.serving.opening import merged, tokenizer_folder
from openafm.tokenizer import load

OURS = {ours: theirs for theirs, ours in NAMES.items()} | {
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}
FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2}
"""Types of matrices, and llama.cpp's number for a file that is mostly of that type (enum llama_ftype)."""
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SPLITS = {
    (("digits", True), ("bytes", True)): "smollm",
    (("bytes", True),): "gpt-2",
    (("regex", LLAMA3), ("bytes", False)): "llama-bpe",
    (("regex", LLAMA3.replace("{1,3}", "")), ("bytes", False)): "qwen2",
}
"""Pre-tokenizers of `tokenizer.json`, and what llama.cpp calls the same (llama-vocab.cpp)."""


def export_gguf(model: Path, out: Path, kind: str = "f16", adapter: str | None = None) -> str:
    """Write the model in `model` (a run, model folder or package), `adapter` merged into it; a line on it.

    Raises ValueError for what the type cannot hold, or a tokenizer that llama.cpp has no name for.
    """
    if kind not in FILE_TYPES:
        raise ValueError(f"--type {kind}: GGUF takes {', '.join(FILE_TYPES)}")
    if out.suffix != ".gguf":
        raise ValueError(f"--out {out}: name a file that ends in .gguf")
    found, transformer = merged(model, adapter)
    config = transformer.config
    tensors = {
        tensor_name(name): llama_order(name, tensor.detach().float().numpy(), config)
        for name, tensor in transformer.state_dict().items()
    }
    types = {name: _stored_type(name, tensor, kind) for name, tensor in tensors.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(out, "qwen3" if config.qk_norm else "llama")
    add_shape(writer, config, model.resolve().name, kind)
    add_tokenizer(writer, tokenizer_folder(found), config.vocab_size)
    for name, tensor in tensors.items():
        stored = gguf.quant_shape_to_byte_shape(tensor.shape, types[name])
        writer.add_tensor_info(name, stored, np.dtype(np.uint8), int(np.prod(stored)), types[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in tensors.items():
        writer.write_tensor_data(gguf.quants.quantize(tensor, types[name]).view(np.uint8))
    writer.close()
    return (
        f"{out}: {config.parameters / 1e6:.1f}M parameters in {kind}, {out.stat().st_size / 1e6:.1f} MB, from {found}"
    )


def tensor_name(name: str) -> str:
    """`model.layers.3.self_attn.q_proj.weight` -> `blk.3.attn_q.weight`."""
    stem, _, suffix = name.rpartition(".")
    if stem in OURS:
        return f"{OURS[stem]}.{suffix}"
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{OURS[part]}.{suffix}"


def llama_order(name: str, weight: NDArray[np.float32], config: ModelConfig) -> NDArray[np.float32]:
    """The rows of q and k in the order that llama.cpp's `llama` turns them: 2i with 2i + 1 instead of i with i + D/2.

    `qwen3` turns them as we do. `weight` is (heads * head_dim, in), or any other tensor, which stays as it is.
    """
    heads = {"q_proj": config.n_heads, "k_proj": config.n_kv_heads}.get(name.split(".")[-2])
    return weight if heads is None or config.qk_norm else np.ascontiguousarray(permute(weight, heads))


def _stored_type(name: str, tensor: NDArray[np.float32], kind: str) -> GGMLQuantizationType:
    """Norms stay float32; at 4 bits the embedding takes 8, since the output layer is the same matrix."""
    if tensor.ndim == 1:
        return GGMLQuantizationType.F32
    found = GGMLQuantizationType["Q8_0" if kind == "q4_0" and name == "token_embd.weight" else kind.upper()]
    block = gguf.GGML_QUANT_SIZES[found][0]
    if tensor.shape[1] % block:
        raise ValueError(f"{name} has {tensor.shape[1]} columns, {kind} needs a multiple of {block}: use --type f16")
    if found == GGMLQuantizationType.F16 and np.abs(tensor).max() > np.finfo(np.float16).max:
        raise ValueError(f"{name} has weights beyond float16's 65504: use --type bf16")
    return found


def add_shape(writer: GGUFWriter, config: ModelConfig, name: str, kind: str) -> None:
    """The model's shape, RoPE and the type of its matrices."""
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_length)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_eps)


def add_tokenizer(writer: GGUFWriter, folder: Path, vocab_size: int) -> None:
    """Vocabulary, merges or scores, special tokens and the chat template of a tokenizer folder."""
    tokenizer = load(folder)
    if tokenizer.vocab_size != vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}: do not mix"
        )
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if settings["kind"] == "sentencepiece":
        _add_sentencepiece(writer, folder / "tokenizer.model")
    else:
        _add_byte_level(writer, folder / "tokenizer.json", settings["bos"])
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_eot_token_id(tokenizer.end_of_turn_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_chat_template(settings["chat_template"])


def _add_sentencepiece(writer: GGUFWriter, path: Path) -> None:
    """llama.cpp's `llama` merges by score as SentencePiece does; a space is U+2581 and bytes are tokens `<0x41>`."""
    model = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    ids = range(model.vocab_size())
    kinds = {
        TokenType.UNKNOWN: model.is_unknown,
        TokenType.CONTROL: model.is_control,
        TokenType.BYTE: model.is_byte,
        TokenType.UNUSED: model.is_unused,
    }
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([model.id_to_piece(i) for i in ids])
    writer.add_token_scores([model.get_score(i) for i in ids])
    writer.add_token_types([next((kind for kind, holds in kinds.items() if holds(i)), TokenType.NORMAL) for i in ids])
    writer.add_unk_token_id(model.unk_id())
    writer.add_add_space_prefix(False)
    writer.add_add_bos_token(True)  # as every text begins here (openafm.sampling)


def _add_byte_level(writer: GGUFWriter, path: Path, bos: str) -> None:
    """Byte-level BPE, `gpt2` to llama.cpp, with the name of its pre-tokenizer."""
    described = json.loads(path.read_bytes())
    split = pre_tokenizer(described, path)
    model = tokenizers.Tokenizer.from_file(str(path))
    added = model.get_added_tokens_decoder()
    types = [
        (TokenType.CONTROL if added[i].special else TokenType.USER_DEFINED) if i in added else TokenType.NORMAL
        for i in range(model.get_vocab_size())
    ]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in described["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list([str(model.id_to_token(i)) for i in range(len(types))])
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_add_space_prefix(False)
    writer.add_add_bos_token(model.encode("a").tokens[0] == bos)


def pre_tokenizer(described: Mapping[str, Any], path: Path) -> str:
    """llama.cpp's name for how `tokenizer.json` splits text before merging; ValueError where it has none."""
    normalizer = described.get("normalizer")
    if described["model"]["type"] != "BPE" or (normalizer and normalizer["type"] != "NFC"):
        raise ValueError(f"{path}: only byte-level BPE without normalizer can be exported to GGUF; use --to hf")
    outer = described.get("pre_tokenizer") or {"type": "none"}
    parts = tuple(_part(part) for part in outer.get("pretokenizers", [outer]))
    if parts not in SPLITS:
        raise ValueError(f"{path}: llama.cpp has no name for this pre-tokenizer {parts}; use --to hf")
    return SPLITS[parts]


def _part(part: Mapping[str, Any]) -> tuple[str, Any]:
    """One step of a pre-tokenizer: what decides its splits."""
    if part["type"] == "Digits":
        return "digits", part["individual_digits"]
    if part["type"] == "ByteLevel" and not part["add_prefix_space"]:
        return "bytes", part.get("use_regex", True)
    if part["type"] == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
        return "regex", part["pattern"].get("Regex")
    return part["type"], None
