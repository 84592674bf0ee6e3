"""GGUF into a model folder: quantized Llama weights become bfloat16 under Hugging Face names; the tokenizer follows.

Used by the step `fetch` for the model that stands in for a server-side one. Rounding that the quantization did stays:
the folder holds the model as its 4-bit file computes it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from openafm.model.config import ModelConfig

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL, USER_DEFINED = 3, 4  # token types of the format
SPLIT_DIGITS = {"smollm": True, "gpt-2": False, "default": False}
"""Pre-tokenizers known here, and whether each digit is a token of its own."""


class Reader(gguf.GGUFReader):
    """The library's reader, kept within the file: past its end that reads nothing, and counts on as far as told."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        if int(offset) + int(count) * np.dtype(dtype).itemsize > len(self.data):
            raise ValueError(
                f"a field at byte {offset} ends behind the file's {len(self.data):,} bytes; download it again"
            )
        return super()._get(offset, dtype, count, override_order)


def import_gguf(path: Path, folder: Path) -> str:
    """Write the model in the GGUF file `path` to `folder` and return its name. Memory stays at one tensor.

    Raises ValueError for another architecture than Llama with tied embeddings, a tokenizer that is not known here, and
    a file that is damaged.
    """
    try:
        return _import(path, folder)
    except OSError:
        raise
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except Exception as error:  # of what is damaged both libraries raise anything
        raise ValueError(f"{path} is damaged, or no whole Llama model ({error!r}); download it again") from error


def _import(path: Path, folder: Path) -> str:
    reader = Reader(str(path))
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    if metadata["general.architecture"] != "llama":
        raise ValueError(f"{path}: architecture {metadata['general.architecture']!r}; only llama can be imported")
    if any(tensor.name == "output.weight" for tensor in reader.tensors):
        raise ValueError(f"{path}: an output matrix of its own; only models with tied embeddings can be imported")
    config = model_config(metadata)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.model_dump(), indent=1) + "\n")
    write_tokenizer(metadata, folder)
    write_weights(reader.tensors, config, folder / "model.safetensors")
    return str(metadata["general.name"])


def model_config(metadata: Mapping[str, Any]) -> ModelConfig:
    """The shape, from the file's metadata."""
    heads = metadata["llama.attention.head_count"]
    width = metadata["llama.embedding_length"]
    return ModelConfig(
        vocab_size=len(metadata["tokenizer.ggml.tokens"]),
        d_model=width,
        n_layers=metadata["llama.block_count"],
        n_heads=heads,
        n_kv_heads=metadata.get("llama.attention.head_count_kv", heads),
        head_dim=metadata.get("llama.attention.key_length", width // heads),
        d_ff=metadata["llama.feed_forward_length"],
        rope_base=float(metadata.get("llama.rope.freq_base", 10_000.0)),
        norm_eps=float(f"{metadata['llama.attention.layer_norm_rms_epsilon']:.6g}"),  # stored in single precision
        qk_norm=False,
        max_length=metadata["llama.context_length"],
    )


def hugging_face_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    *prefix, part, suffix = name.split(".")
    layer = f"model.layers.{prefix[1]}." if prefix else ""
    return f"{layer}{NAMES[part]}.{suffix}"


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo the order llama.cpp gives the rows of q and k: each head's halves interleaved -> one after the other.

    `weight` is (heads * head_dim, in). RoPE here turns row i with row i + head_dim/2; llama.cpp turns 2i with 2i + 1.
    """
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Give the rows of q and k, (heads * head_dim, in), the order that llama.cpp's `llama` turns them in."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 to the bits of bfloat16 (uint16), ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def write_weights(tensors: list[Any], config: ModelConfig, path: Path) -> None:
    """A safetensors file written tensor by tensor: header length, JSON header, data in the header's order."""
    ordered = sorted(tensors, key=lambda tensor: hugging_face_name(tensor.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        shape = [int(size) for size in reversed(tensor.shape)]
        start, end = end, end + 2 * int(np.prod(shape))
        header[hugging_face_name(tensor.name)] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    heads = {"attn_q": config.n_heads, "attn_k": config.n_kv_heads}
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            part = tensor.name.split(".")[-2]
            file.write(to_bfloat16(unpermute(values, heads[part]) if part in heads else values).tobytes())


def write_tokenizer(metadata: Mapping[str, Any], folder: Path) -> None:
    """`tokenizer.json` (byte-level BPE) and `tokenizer_config.json` from the file's vocabulary, merges and template."""
    kind, split = metadata["tokenizer.ggml.model"], metadata.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or split not in SPLIT_DIGITS:
        raise ValueError(f"tokenizer {kind}/{split} is not known; known are gpt2 with {', '.join(SPLIT_DIGITS)}")
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    model = tokenizers.Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=metadata.get("tokenizer.ggml.add_space_prefix", False))
    digits = [pre_tokenizers.Digits(individual_digits=True)] if SPLIT_DIGITS[split] else []
    model.pre_tokenizer = pre_tokenizers.Sequence([*digits, byte_level])
    model.decoder = decoders.ByteLevel()
    for token, token_type in zip(tokens, types, strict=True):
        if token_type in (CONTROL, USER_DEFINED):
            model.add_tokens([AddedToken(token, special=token_type == CONTROL, normalized=False)])
    model.save(str(folder / "tokenizer.json"))
    eos = tokens[metadata["tokenizer.ggml.eos_token_id"]]
    config = {
        "kind": "tokenizers",
        "chat_template": metadata["tokenizer.chat_template"],
        "bos": tokens[metadata.get("tokenizer.ggml.bos_token_id", metadata["tokenizer.ggml.eos_token_id"])],
        "eos": eos,
        "end_of_turn": eos,
        "pad": tokens[metadata.get("tokenizer.ggml.padding_token_id", metadata["tokenizer.ggml.eos_token_id"])],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")
