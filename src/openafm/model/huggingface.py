"""A Hugging Face folder (config.json, safetensors, tokenizer.json) into a model folder: the classes Llama and Qwen3.

Used by the step and verb `import`. What the decoder here cannot compute is refused by name, never approximated; only
safetensors are read, so no file of a stranger is ever unpickled.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from openafm.model.config import ModelConfig
from openafm.model.transformer import Transformer

QK_NORM = {"llama": False, "qwen3": True}
"""Model types that can be computed here, and whether they normalise queries and keys."""
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
IGNORED = (".rotary_emb.inv_freq",)
"""Tensors that old checkpoints store though they follow from the config."""
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""For models that were never taught to chat."""


def import_folder(source: Path, folder: Path) -> None:
    """Write the checkpoint in `source` as a model folder. Raises ValueError for what is missing or not computed here.

    Rows of the embedding beyond the tokenizer's last token (padding to a round size) are left out.
    """
    config, files = open_folder(source, folder)
    weights = {name: read_tensor(path, name) for name, path in files.items()}
    weights[EMBEDDING] = weights[EMBEDDING][: config.vocab_size].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.model_dump(), indent=1) + "\n")


def open_folder(source: Path, folder: Path) -> tuple[ModelConfig, dict[str, Path]]:
    """What `import_folder` makes, with the weights left where they are: the shape, and the file of every tensor.

    The tokenizer is written to `folder`. The embedding may have more rows than the shape's vocabulary. Raises
    ValueError as `import_folder` does.
    """
    settings = _json(source / "config.json")
    config = model_config(settings, str(source / "config.json"))
    rows = write_tokenizer(source, folder)
    if rows > config.vocab_size:
        raise ValueError(f"{source / 'tokenizer.json'} has {rows} tokens, config.json {config.vocab_size}: do not mix")
    files = tensor_files(source)
    shared = {name: read_tensor(files[name], name) for name in (EMBEDDING, HEAD) if name in files}
    _check_tied(shared, bool(settings.get("tie_word_embeddings", False)), source)
    files.pop(HEAD, None)
    config = config.model_copy(update={"vocab_size": rows})
    shapes = {name: _shape(path, name) for name, path in files.items()}
    shapes[EMBEDDING] = [min(shapes[EMBEDDING][0], rows), *shapes[EMBEDDING][1:]]
    _check_fit(shapes, config, source)
    return config, files


def model_config(settings: Mapping[str, Any], name: str) -> ModelConfig:
    """The shape in a Hugging Face config; ValueError naming what of it is missing, wrong or not computed here."""
    try:
        return _model_config(settings, name)
    except KeyError as error:
        raise ValueError(f"{name} lacks {error}: give the config.json of the checkpoint itself") from None
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{name} is damaged ({error}): give the config.json of the checkpoint itself") from None


def _model_config(settings: Mapping[str, Any], name: str) -> ModelConfig:
    kind = settings.get("model_type")
    if kind not in QK_NORM:
        raise ValueError(f"{name}: model_type {kind!r} cannot be imported; {' and '.join(QK_NORM)} can")
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    layers = set(settings.get("layer_types") or ())
    refused = {
        "biases (attention_bias, mlp_bias)": settings.get("attention_bias") or settings.get("mlp_bias"),
        "sliding windows": settings.get("use_sliding_window") or layers - {"full_attention"},
        f"rope scaling {rope}": rope.get("rope_type", rope.get("type", "default")) != "default",
        "partial rotary embeddings": rope.get("partial_rotary_factor", settings.get("partial_rotary_factor", 1.0)) != 1,
        f"the activation {settings.get('hidden_act')!r}": settings.get("hidden_act", "silu") != "silu",
    }
    for what, found in refused.items():
        if found:
            raise ValueError(f"{name}: {what} cannot be imported: choose a plain dense {' or '.join(QK_NORM)} model")
    heads, width = settings["num_attention_heads"], settings["hidden_size"]
    return ModelConfig(
        vocab_size=settings["vocab_size"],
        d_model=width,
        n_layers=settings["num_hidden_layers"],
        n_heads=heads,
        n_kv_heads=settings.get("num_key_value_heads") or heads,
        head_dim=settings.get("head_dim") or width // heads,
        d_ff=settings["intermediate_size"],
        rope_base=float(rope.get("rope_theta") or settings.get("rope_theta") or 10_000.0),
        norm_eps=settings["rms_norm_eps"],
        qk_norm=QK_NORM[kind],
        max_length=settings["max_position_embeddings"],
    )


def tensor_files(source: Path) -> dict[str, Path]:
    """The file of each tensor: `model.safetensors`, or the shards that `model.safetensors.index.json` names."""
    index = source / "model.safetensors.index.json"
    names = sorted(set(_json(index)["weight_map"].values())) if index.exists() else ["model.safetensors"]
    files: dict[str, Path] = {}
    for name in names:
        path = source / name
        if Path(name).name != name:
            raise ValueError(f"{index}: {name!r} is no name of a file beside it")
        if not path.is_file():
            raise ValueError(f"{path} is missing: only safetensors are read; save the model with save_pretrained anew")
        try:
            with safe_open(path, "pt") as file:
                files |= {key: path for key in file.keys() if not key.endswith(IGNORED)}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); download it again") from error
    return files


def read_tensor(path: Path, name: str) -> Tensor:
    """Map one tensor; nothing else of the file stays in memory."""
    with safe_open(path, "pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def _shape(path: Path, name: str) -> list[int]:
    with safe_open(path, "pt") as file:
        return list(file.get_slice(name).get_shape())


def _check_tied(weights: Mapping[str, Tensor], declared: bool, source: Path) -> None:
    """Raise ValueError where there is no embedding, or where the output matrix is one of its own."""
    head = weights.get(HEAD)
    if EMBEDDING not in weights:
        raise ValueError(f"{source}: no {EMBEDDING} in the weights: give a causal language model's checkpoint")
    if head is None and not declared:
        raise ValueError(f"{source}: no {HEAD}, though config.json says that it is not tied to the embedding")
    if head is not None and not declared and not torch.equal(head, weights[EMBEDDING]):
        raise ValueError(f"{source}: an output matrix of its own; only models with tied embeddings can be imported")


def _check_fit(shapes: Mapping[str, list[int]], config: ModelConfig, source: Path) -> None:
    """Raise ValueError for the first tensor that the shape has no place for, lacks or holds in another size."""
    with torch.device("meta"):
        expected = {name: list(tensor.shape) for name, tensor in Transformer(config).state_dict().items()}
    for name in sorted(expected.keys() | shapes.keys()):
        if name not in expected:
            raise ValueError(f"{source}: the tensor {name} has no place in a plain {config.n_layers}-layer decoder")
        if shapes.get(name) != expected[name]:
            raise ValueError(
                f"{source}: the tensor {name} is {shapes.get(name, 'missing')}, config.json asks for {expected[name]}"
            )


def write_tokenizer(source: Path, folder: Path) -> int:
    """Copy `tokenizer.json`, write `tokenizer_config.json` as it is read here; the vocabulary's size."""
    path = source / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: save the tokenizer with transformers' AutoTokenizer and save_pretrained")
    data = path.read_bytes()
    try:
        vocabulary = tokenizers.Tokenizer.from_buffer(data).get_vocab()
    except Exception as error:  # the library raises no narrower type
        raise ValueError(f"{path} is damaged ({error}); download it again") from error
    if max(vocabulary.values()) + 1 != len(vocabulary):
        raise ValueError(f"{path}: token ids have gaps; such a tokenizer cannot be imported")
    given = _json(source / "tokenizer_config.json")
    eos = _token(given.get("eos_token"))
    if eos is None:
        raise ValueError(f"{source / 'tokenizer_config.json'} names no eos_token: add the token that ends a text")
    config = {
        "kind": "tokenizers",
        "chat_template": _template(source, given),
        "bos": _token(given.get("bos_token")) or eos,
        "eos": eos,
        "end_of_turn": eos,
        "pad": _token(given.get("pad_token")) or eos,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_bytes(data)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    return len(vocabulary)


def _token(given: Any) -> str | None:
    """A special token, written as text or as an AddedToken's mapping."""
    token: str | None = given["content"] if isinstance(given, dict) else given
    return token


def _template(source: Path, given: Mapping[str, Any]) -> str:
    """The chat template: a file of its own, the config's (the one called default of several), or the plain one."""
    if (source / "chat_template.jinja").is_file():
        return (source / "chat_template.jinja").read_text(encoding="utf-8")
    template = given.get("chat_template") or PLAIN_TEMPLATE
    if isinstance(template, list):
        return str({entry["name"]: entry["template"] for entry in template}.get("default", PLAIN_TEMPLATE))
    return str(template)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is missing: give a folder as Hugging Face's save_pretrained writes it")
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); download it again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object; download it again")
    return found
